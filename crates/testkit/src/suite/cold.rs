//! Cold images: what is fetched how often, and what becomes of failing backends and damaged caches. By counts of the
//! blob server and by content, never by time.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fixture::{Fixture, done, guest};
use super::small_disk::SmallDisk;
use crate::blob_server::BlobServer;
use crate::daemon::DaemonProcess;
use crate::guest::FuseClient;
use crate::guest::fuse::ops;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::peers::Skip;
use crate::tree;

type Outcome = Result<(), Skip>;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;
/// Chunks of the file that most of this is about; each is 1 MiB.
pub(super) const CHUNKS: usize = 16;

/// An image with one large file `file-0` and one small `file-1`, behind a server that counts.
pub(super) struct Cold {
    pub(super) image: Image,
    pub(super) server: BlobServer,
    pub(super) content: Vec<u8>,
}

pub(super) fn cold(fx: &Fixture, version: RafsVersion) -> Result<Cold, Skip> {
    let source = fx.path("source");
    fs::create_dir(&source).unwrap();
    let content = tree::bytes(1, CHUNKS * MIB);
    fs::write(source.join("file-0"), &content).unwrap();
    fs::write(source.join("file-1"), tree::bytes(2, 5000)).unwrap();
    let image = fx.image(&source, version)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    Ok(Cold {
        image,
        server,
        content,
    })
}

impl Cold {
    pub(super) fn config(&self, fx: &Fixture, cache: &Path) -> String {
        fx.spare(image::rafs_config_http_proxy(&self.server.address(), cache))
    }

    /// A daemon that has mounted the image with its cache there.
    pub(super) fn daemon(&self, fx: &Fixture, config: &str) -> DaemonProcess {
        let daemon = fx.daemon(&[]);
        done(
            &daemon
                .mount("/image", &mount_body("rafs", &self.image.bootstrap, config))
                .unwrap(),
        );
        daemon
    }

    /// A guest, after which the blob's own metadata have been fetched.
    pub(super) fn guest(&self, daemon: &DaemonProcess) -> (FuseClient, u64) {
        let mut fs = guest(daemon);
        assert_eq!(fs.read_file("/image/file-1").unwrap(), tree::bytes(2, 5000));
        let node = fs.resolve("/image/file-0").unwrap().nodeid;
        (fs, node)
    }

    pub(super) fn assert_reads_right(&self, fs: &mut FuseClient) {
        assert!(fs.read_file("/image/file-0").unwrap() == self.content);
    }
}

pub(super) fn daemons_share_what_they_fetch(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let homes: Vec<Fixture> = (0..4).map(|_| Fixture::new(fx.program())).collect();
    let config = cold.config(fx, &fx.path("cache"));
    let daemons: Vec<_> = homes.iter().map(|home| cold.daemon(home, &config)).collect();
    let mut guests: Vec<_> = daemons.iter().map(|d| cold.guest(d).0).collect();
    let before = cold.server.counters().bytes;
    std::thread::scope(|scope| {
        for fs in &mut guests {
            scope.spawn(|| cold.assert_reads_right(fs));
        }
    });
    let fetched = cold.server.counters().bytes - before;
    let blob = crate::blob_server::total_bytes(&cold.image.blobs).unwrap();
    assert!(fetched <= blob + blob / 20, "{fetched} bytes of a blob of {blob}");
    Ok(())
}

pub(super) fn reader_in_order_is_fetched_ahead_of(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let daemon = cold.daemon(fx, &cold.config(fx, &fx.path("cache")));
    let (mut fs, node) = cold.guest(&daemon);
    let before = cold.server.counters();
    cold.server.hold();
    let first = fs.submit(ops::read(node, 0, 0, 1 << 20)).unwrap();
    assert!(
        cold.server.await_held(2, PATIENCE),
        "one READ, two requests at once"
    );
    cold.server.release();
    assert!(fs.wait(first).unwrap() == cold.content[..MIB]);
    cold.assert_reads_right(&mut fs);
    let after = cold.server.counters();
    let blob = crate::blob_server::total_bytes(&cold.image.blobs).unwrap();
    assert!(after.bytes - before.bytes <= blob, "nothing is fetched twice");
    assert!(
        after.gets - before.gets < CHUNKS as u64,
        "neighbours are merged: {after:?}"
    );
    Ok(())
}

pub(super) fn reader_here_and_there_costs_its_chunks(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let daemon = cold.daemon(fx, &cold.config(fx, &fx.path("cache")));
    let (mut fs, node) = cold.guest(&daemon);
    let before = cold.server.counters();
    for chunk in [9_usize, 2, 13, 6, 11] {
        for within in [700_000, 4096, 300_000] {
            let at = chunk * MIB + within;
            let read = fs.read(node, 0, at as u64, 4096).unwrap();
            assert!(read == cold.content[at..at + 4096]);
        }
    }
    let after = cold.server.counters();
    let each = crate::blob_server::total_bytes(&cold.image.blobs).unwrap() / CHUNKS as u64;
    // nydus fills a request of compressible chunks up to 1 MiB.
    let most = 5 * each.max(1 << 20);
    assert!(
        after.bytes - before.bytes <= most,
        "{} bytes",
        after.bytes - before.bytes
    );
    assert!(after.gets - before.gets <= 5, "{after:?}");
    Ok(())
}

pub(super) fn killed_daemon_holds_nobody_up(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let home = Fixture::new(fx.program());
    let config = cold.config(fx, &fx.path("cache"));
    let (killed, survivor) = (cold.daemon(&home, &config), cold.daemon(fx, &config));
    let ((mut fs, node), (mut other, other_node)) = (cold.guest(&killed), cold.guest(&survivor));
    let gets = cold.server.counters().gets;
    cold.server.hold();
    let _never = fs.submit(ops::read(node, 0, 8 << 20, 4096)).unwrap();
    assert!(cold.server.await_held(1, PATIENCE));
    let read = other.submit(ops::read(other_node, 0, 8 << 20, 4096)).unwrap();
    // With SIGKILL.
    drop(killed);
    cold.server.release();
    assert!(other.wait(read).unwrap() == cold.content[8 * MIB..8 * MIB + 4096]);
    assert!(
        cold.server.counters().gets - gets <= 2 + 1,
        "no more than both, and one neighbour"
    );
    cold.assert_reads_right(&mut other);
    Ok(())
}

pub(super) fn cache_without_room_does_not_fail_reads(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let Some(disk) = SmallDisk::mount(fx.path("small"), "3m") else {
        return Ok(());
    };
    let daemon = cold.daemon(fx, &cold.config(fx, disk.path()));
    let (mut fs, _) = cold.guest(&daemon);
    for _pass in 0..2 {
        cold.assert_reads_right(&mut fs);
    }
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("No space left"), "{}", events.body);
    drop(daemon);
    Ok(())
}

/// The only file in the cache with this ending.
pub(super) fn cache_path(cache: &Path, ending: &str) -> PathBuf {
    let mut files = fs::read_dir(cache).unwrap().map(|e| e.unwrap().path());
    files.find(|p| p.to_string_lossy().ends_with(ending)).unwrap()
}

/// It, open for writing.
pub(super) fn cache_file(cache: &Path, ending: &str) -> File {
    OpenOptions::new()
        .write(true)
        .open(cache_path(cache, ending))
        .unwrap()
}

pub(super) fn cache_truncated_under_the_daemon_is_filled_again(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let daemon = cold.daemon(fx, &cold.config(fx, &fx.path("cache")));
    let (mut fs, _) = cold.guest(&daemon);
    cold.assert_reads_right(&mut fs);
    for (ending, length) in [
        (".blob.data", 3_500_000),
        (".blob.data", 0),
        (".chunk_map", 0),
        (".chunk_map", 4097),
    ] {
        cache_file(&fx.path("cache"), ending).set_len(length).unwrap();
        cold.assert_reads_right(&mut fs);
        assert!(daemon.is_alive());
    }
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("truncated"), "{}", events.body);
    // As does one that comes after it and finds the damage.
    cache_file(&fx.path("cache"), ".blob.data")
        .set_len(1_000_000)
        .unwrap();
    drop(fs);
    done(&daemon.umount("/image").unwrap());
    drop(daemon);
    let daemon = cold.daemon(fx, &cold.config(fx, &fx.path("cache")));
    cold.assert_reads_right(&mut cold.guest(&daemon).0);
    Ok(())
}

/// What a power cut may leave: all is marked, none of the content came to the disk, and nobody has noted that it did.
pub(super) fn cache_that_a_power_cut_emptied_is_filled_again(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    cold.assert_reads_right(&mut cold.guest(&daemon).0);
    drop(daemon);
    let data = cache_file(&cache, ".blob.data");
    let length = data.metadata().unwrap().len();
    data.set_len(0).unwrap();
    data.set_len(length).unwrap();
    // `image_fs/settled.rs`: of another boot, and no digest.
    let mut note = b"on disk1another".to_vec();
    note.resize(3568, 0);
    cache_file(&cache, ".chunk_map").write_all_at(&note, 512).unwrap();
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    cold.assert_reads_right(&mut cold.guest(&daemon).0);
    Ok(())
}

/// A configuration in which content is compared with the image's digests.
fn validating(config: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(config).unwrap();
    value["cache"]["validate"] = true.into();
    value.to_string()
}

pub(super) fn cache_with_wrong_bytes_is_found_out_and_filled_again(fx: &Fixture) -> Outcome {
    wrong_bytes_in_the_cache(fx, RafsVersion::V5)
}

pub(super) fn cache_of_v6_with_wrong_bytes_is_found_out_and_filled_again(fx: &Fixture) -> Outcome {
    wrong_bytes_in_the_cache(fx, RafsVersion::V6Digests)
}

fn wrong_bytes_in_the_cache(fx: &Fixture, version: RafsVersion) -> Outcome {
    let cold = cold(fx, version)?;
    let daemon = cold.daemon(fx, &validating(&cold.config(fx, &fx.path("cache"))));
    let (mut fs, _) = cold.guest(&daemon);
    cold.assert_reads_right(&mut fs);
    let data = cache_file(&fx.path("cache"), ".blob.data");
    for at in [100, 5_000_000, 16_000_000] {
        data.write_all_at(b"not what was here", at).unwrap();
    }
    cold.assert_reads_right(&mut fs);
    Ok(())
}

/// By whoever had it: a guest's daemon that believes another image, a disk.
pub(super) fn cache_that_is_not_the_images_is_found_out_by_the_next_daemon(fx: &Fixture) -> Outcome {
    for version in [RafsVersion::V5, RafsVersion::V6] {
        let home = Fixture::new(fx.program());
        let cold = cold(&home, version)?;
        let config = cold.config(&home, &home.path("cache"));
        let daemon = cold.daemon(&home, &config);
        cold.assert_reads_right(&mut cold.guest(&daemon).0);
        drop(daemon);
        let data = cache_file(&home.path("cache"), ".blob.data");
        for at in [100, 5_000_000, 16_000_000] {
            data.write_all_at(b"not what was here", at).unwrap();
        }
        let daemon = cold.daemon(&home, &config);
        let (mut fs, node) = cold.guest(&daemon);
        assert!(fs.read(node, 0, 5_000_000, 4096).unwrap() == cold.content[5_000_000..5_004_096]);
        cold.assert_reads_right(&mut fs);
    }
    Ok(())
}

pub(super) fn content_that_is_not_the_images_fails_the_read(fx: &Fixture) -> Outcome {
    spoilt_blob(fx, RafsVersion::V5)
}

pub(super) fn content_that_is_not_a_v6_images_fails_the_read(fx: &Fixture) -> Outcome {
    spoilt_blob(fx, RafsVersion::V6Digests)
}

/// No digests in the blob: the bootstrap's suffice.
pub(super) fn content_that_is_not_a_plain_v6_images_fails_the_read(fx: &Fixture) -> Outcome {
    spoilt_blob(fx, RafsVersion::V6)
}

fn spoilt_blob(fx: &Fixture, version: RafsVersion) -> Outcome {
    let cold = cold(fx, version)?;
    let blob = fs::read_dir(&cold.image.blobs)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let right = fs::read(&blob).unwrap();
    // Somewhere in the middle; the first chunks stay right.
    let middle = right.len() / 2;
    let mut wrong = right.clone();
    wrong[middle..middle + 64].fill(0x55);
    let short = right[..right.len() * 3 / 4].to_vec();
    for (what, spoilt) in [("wrong", wrong), ("short", short)] {
        let home = Fixture::new(fx.program());
        let plain = cold.config(fx, &home.path("cache"));
        // Of us nobody has to ask for it.
        let config = match fx.program().is_ours() {
            true => plain,
            false => validating(&plain),
        };
        let daemon = cold.daemon(&home, &config);
        let (mut fs, node) = cold.guest(&daemon);
        fs::write(&blob, &spoilt).unwrap();
        let mut failed = 0;
        for at in (0..CHUNKS).map(|n| n * MIB) {
            match fs.read(node, 0, at as u64, 4096) {
                Ok(bytes) => assert!(bytes == cold.content[at..at + 4096], "{what} at {at}"),
                Err(error) => {
                    assert_eq!(error.errno(), Some(rustix::io::Errno::IO), "{what} at {at}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0 && failed < CHUNKS, "{what}: {failed}");
        if fx.program().is_ours() {
            let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
            assert!(events.body.contains("of blob"), "{}", events.body);
        }
        fs::write(&blob, &right).unwrap();
        cold.assert_reads_right(&mut fs);
    }
    Ok(())
}
