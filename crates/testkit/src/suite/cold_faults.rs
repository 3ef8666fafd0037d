//! Backends and caches that fail, for every kind of blob: EIO for the reads that cannot be served, never wrong bytes,
//! and all is well again when the cause is gone.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use nydus_utils::digest::{Algorithm, RafsDigest};

use super::cold::{self, CHUNKS, Cold};
use super::fixture::{Fixture, done, guest, refused};
use super::small_disk::SmallDisk;
use crate::blob_server::{BlobServer, Fault};
use crate::daemon::DaemonProcess;
use crate::guest::FuseClient;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::packed::{self, Packing};
use crate::peers::{Peer, Skip, require};
use crate::tree;

type Outcome = Result<(), Skip>;

/// Small files of a packed image, and one large.
const SMALL: u64 = 40;
const LARGE: usize = 3 << 20;

/// An image of blobs that nydus unpacks.
struct Packed {
    image: Image,
    server: BlobServer,
    /// Content of `file-N`.
    contents: Vec<Vec<u8>>,
}

fn packed(fx: &Fixture, packing: Packing) -> Result<Packed, Skip> {
    // Every second is compressible.
    let small = (0..SMALL).map(|n| tree::bytes(n + 1, if n % 2 == 0 { 1000 } else { 30_000 }).repeat(20));
    packed_of(
        fx,
        packing,
        std::iter::once(tree::bytes(99, LARGE)).chain(small).collect(),
    )
}

fn packed_of(fx: &Fixture, packing: Packing, contents: Vec<Vec<u8>>) -> Result<Packed, Skip> {
    let builder = require(Peer::NydusImage)?;
    let source = fx.path("source");
    fs::create_dir(&source).unwrap();
    for (n, content) in contents.iter().enumerate() {
        fs::write(source.join(format!("file-{n:02}")), content).unwrap();
    }
    let image = packed::build(&builder, &source, &fx.path("image"), packing).unwrap();
    let server = BlobServer::start(&image.blobs).unwrap();
    Ok(Packed {
        image,
        server,
        contents,
    })
}

impl Packed {
    fn daemon(&self, home: &Fixture, cache: &Path) -> DaemonProcess {
        let daemon = home.daemon(&[]);
        let config = image::rafs_config_http_proxy(&self.server.address(), cache);
        done(
            &daemon
                .mount("/image", &mount_body("rafs", &self.image.bootstrap, &config))
                .unwrap(),
        );
        daemon
    }

    fn assert_reads_right(&self, fs: &mut FuseClient) {
        for (n, content) in self.contents.iter().enumerate() {
            assert!(
                fs.read_file(format!("/image/file-{n:02}")).unwrap() == *content,
                "file-{n}"
            );
        }
    }

    /// Reads a part of each file: right, or EIO. Gives how many failed.
    fn read_what_can_be_read(&self, fs: &mut FuseClient) -> usize {
        let mut failed = 0;
        for (n, content) in self.contents.iter().enumerate() {
            let node = fs.resolve(format!("/image/file-{n:02}")).unwrap().nodeid;
            match fs.read(node, 0, 4096, 8192) {
                Ok(bytes) => assert!(bytes == content[4096..4096 + 8192], "file-{n}"),
                Err(error) => {
                    assert_eq!(error.errno(), Some(rustix::io::Errno::IO), "file-{n}: {error:?}");
                    failed += 1;
                }
            }
        }
        failed
    }
}

fn packed_blobs_are_shared(fx: &Fixture, packing: Packing) -> Outcome {
    let packed = packed(fx, packing)?;
    let cache = fx.path("cache");
    let homes = [Fixture::new(fx.program()), Fixture::new(fx.program())];
    let daemons = homes.each_ref().map(|home| packed.daemon(home, &cache));
    let mut guests = daemons.each_ref().map(guest);
    thread::scope(|scope| {
        for fs in &mut guests {
            scope.spawn(|| packed.assert_reads_right(fs));
        }
    });
    let before = packed.server.counters().gets;
    let home = Fixture::new(fx.program());
    let daemon = packed.daemon(&home, &cache);
    packed.assert_reads_right(&mut guest(&daemon));
    assert_eq!(packed.server.counters().gets, before, "all of it is in the cache");
    Ok(())
}

pub(super) fn batches_are_shared(fx: &Fixture) -> Outcome {
    packed_blobs_are_shared(fx, Packing::Batch)
}

pub(super) fn zran_blobs_are_shared(fx: &Fixture) -> Outcome {
    packed_blobs_are_shared(fx, Packing::Zran)
}

/// nydus finds the beginning of a batch only, and unpacks whole ones: who begins in its middle has to be served, and
/// who reads from the end to the beginning begins there each time.
pub(super) fn batches_are_read_from_their_middle(fx: &Fixture) -> Outcome {
    let contents = (1..=40).map(|n| tree::bytes(n, 12_345)).collect();
    let packed = packed_of(fx, Packing::Batch, contents)?;
    let daemon = packed.daemon(fx, &fx.path("cache"));
    let mut fs = guest(&daemon);
    for (n, content) in packed.contents.iter().enumerate().rev() {
        assert!(
            fs.read_file(format!("/image/file-{n:02}")).unwrap() == *content,
            "file-{n}"
        );
    }
    // Again, after the cache has lost it all.
    cold::cache_file(&fx.path("cache"), ".blob.data")
        .set_len(0)
        .unwrap();
    for (n, content) in packed.contents.iter().enumerate().rev().step_by(3) {
        assert!(
            fs.read_file(format!("/image/file-{n:02}")).unwrap() == *content,
            "file-{n}"
        );
    }
    packed.assert_reads_right(&mut fs);
    Ok(())
}

/// The largest blob: the others are tables.
fn data_blob(image: &Image) -> PathBuf {
    let blobs = fs::read_dir(&image.blobs).unwrap().map(|e| e.unwrap());
    blobs.max_by_key(|e| e.metadata().unwrap().len()).unwrap().path()
}

fn packed_blobs_outlive_faults(fx: &Fixture, packing: Packing) -> Outcome {
    let packed = packed(fx, packing)?;
    let cache = fx.path("cache");
    let daemon = packed.daemon(fx, &cache);
    let mut fs = guest(&daemon);
    // What comes of the first file brings the table along.
    let node = fs.resolve("/image/file-00").unwrap().nodeid;
    fs.read(node, 0, 0, 4096).unwrap();
    for fault in [Fault::Status(503), Fault::Truncate, Fault::Short] {
        packed.server.fail_next(fault, 2);
        packed.read_what_can_be_read(&mut fs);
    }
    packed.server.fail_next(Fault::Short, 0);
    packed.assert_reads_right(&mut fs);
    for length in [100_000, 0] {
        let data = cold::cache_file(&cache, ".blob.data");
        data.set_len(length).unwrap();
        packed.assert_reads_right(&mut fs);
    }
    let map = cold::cache_file(&cache, ".chunk_map");
    map.set_len(4096).unwrap();
    packed.assert_reads_right(&mut fs);
    Ok(())
}

pub(super) fn batches_outlive_faults(fx: &Fixture) -> Outcome {
    packed_blobs_outlive_faults(fx, Packing::Batch)
}

pub(super) fn zran_blobs_outlive_faults(fx: &Fixture) -> Outcome {
    packed_blobs_outlive_faults(fx, Packing::Zran)
}

/// What is missing of it is asked for again for as long as a read may wait.
pub(super) fn zran_blob_that_is_too_short_fails_the_read(fx: &Fixture) -> Outcome {
    let packed = packed(fx, Packing::Zran)?;
    let daemon = packed.daemon(fx, &fx.path("cache"));
    let mut fs = guest(&daemon);
    let last = format!("/image/file-{SMALL:02}");
    let node = fs.resolve(&last).unwrap().nodeid;
    let first = fs.resolve("/image/file-00").unwrap().nodeid;
    fs.read(first, 0, 0, 4096).unwrap();
    let blob = data_blob(&packed.image);
    let right = fs::read(&blob).unwrap();
    fs::write(&blob, &right[..right.len() / 2]).unwrap();
    let error = fs.read(node, 0, 0, 4096).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::IO));
    assert!(fs.read(first, 0, 0, 4096).unwrap() == packed.contents[0][..4096]);
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("of blob"), "{}", events.body);
    fs::write(&blob, &right).unwrap();
    packed.assert_reads_right(&mut fs);
    Ok(())
}

/// On a full disk nydus has nowhere to unpack to: EIO, not wrong bytes, and not for longer than the disk is full.
pub(super) fn packed_blobs_without_room_fail_until_there_is_some(fx: &Fixture) -> Outcome {
    let packed = packed(fx, Packing::Zran)?;
    let Some(disk) = SmallDisk::mount(fx.path("small"), "40m") else {
        return Ok(());
    };
    let daemon = packed.daemon(fx, disk.path());
    let mut fs = guest(&daemon);
    let node = fs.resolve("/image/file-00").unwrap().nodeid;
    fs.read(node, 0, 0, 4096).unwrap();
    let filler = disk.fill();
    assert!(packed.read_what_can_be_read(&mut fs) > 0);
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("No space left"), "{}", events.body);
    fs::remove_file(filler).unwrap();
    packed.assert_reads_right(&mut fs);
    drop((fs, daemon));
    Ok(())
}

/// nydus asks five times for a table when an image is mounted, which takes it 13 s, and never again.
pub(super) fn table_that_was_not_to_be_had_is_asked_for_again(fx: &Fixture) -> Outcome {
    let cold = cold::cold(fx, RafsVersion::V6)?;
    let blob = data_blob(&cold.image);
    let away = fx.path("away");
    fs::rename(&blob, &away).unwrap();
    let daemon = cold.daemon(fx, &cold.config(fx, &fx.path("cache")));
    let mut fs = guest(&daemon);
    let node = fs.resolve("/image/file-0").unwrap().nodeid;
    let error = fs.read(node, 0, 0, 4096).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::IO));
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("gives no data of blob"), "{}", events.body);
    fs::rename(&away, &blob).unwrap();
    cold.assert_reads_right(&mut fs);
    Ok(())
}

pub(super) fn table_damaged_in_the_cache_is_fetched_again(fx: &Fixture) -> Outcome {
    let cold = cold::cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let config = cold.config(fx, &cache);
    drop_after_reading(&cold, fx, &config);
    let damages: [fn(&fs::File) -> io::Result<()>; 3] = [
        // The place of a chunk, the header, the end.
        |f| f.write_all_at(&[0xff; 4], 5),
        |f| f.write_all_at(&[0; 8], 4096),
        |f| f.set_len(5000),
    ];
    for damage in damages {
        damage(&cold::cache_file(&cache, ".blob.meta")).unwrap();
        fs::remove_file(cold::cache_path(&cache, ".blob.data")).unwrap();
        let home = Fixture::new(fx.program());
        let daemon = cold.daemon(&home, &config);
        cold.assert_reads_right(&mut cold.guest(&daemon).0);
        let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
        assert!(events.body.contains("table of chunks"), "{}", events.body);
    }
    // The one that took its place is used.
    let home = Fixture::new(fx.program());
    let before = cold.server.counters().gets;
    drop_after_reading(&cold, &home, &config);
    assert_eq!(cold.server.counters().gets, before);
    Ok(())
}

/// Sealed as ours are: another image that calls its blob the same has left it, say.
pub(super) fn table_of_another_image_is_fetched_again(fx: &Fixture) -> Outcome {
    const HEADER: usize = 4096;
    let cold = cold::cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let config = cold.config(fx, &cache);
    drop_after_reading(&cold, fx, &config);
    let path = cold::cache_path(&cache, ".blob.meta");
    let right = fs::read(&path).unwrap();
    let mut wrong = right.clone();
    // The first two chunks in each other's place: an entry has 16 or 24 bytes, whichever it is, and the last is not 0.
    let used = right[..right.len() - HEADER]
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap();
    let entry = (used / (CHUNKS + 1)).next_multiple_of(8);
    let (one, rest) = wrong.split_at_mut(entry);
    one.swap_with_slice(&mut rest[..entry]);
    let seal = wrong.len() - 36..wrong.len() - 4;
    let digest = RafsDigest::from_buf(&wrong[..seal.start], Algorithm::Blake3);
    wrong[seal].copy_from_slice(&digest.data);
    fs::write(&path, &wrong).unwrap();
    fs::remove_file(cold::cache_path(&cache, ".blob.data")).unwrap();
    let home = Fixture::new(fx.program());
    let daemon = cold.daemon(&home, &config);
    cold.assert_reads_right(&mut cold.guest(&daemon).0);
    let events = daemon.api("GET", "/api/v1/daemon/events", None).unwrap();
    assert!(events.body.contains("is not the image's"), "{}", events.body);
    // And whoever comes next finds the right one.
    assert!(fs::read(&path).unwrap() == right);
    Ok(())
}

fn drop_after_reading(cold: &Cold, home: &Fixture, config: &str) {
    let daemon = cold.daemon(home, config);
    cold.assert_reads_right(&mut cold.guest(&daemon).0);
    done(&daemon.umount("/image").unwrap());
}

pub(super) fn mount_that_needs_room_on_a_full_disk_is_refused_and_the_others_go_on(fx: &Fixture) -> Outcome {
    let cold = cold::cold(fx, RafsVersion::V6)?;
    let Some(disk) = SmallDisk::mount(fx.path("small"), "40m") else {
        return Ok(());
    };
    let config = cold.config(fx, disk.path());
    let daemon = cold.daemon(fx, &config);
    let (mut fs, _) = cold.guest(&daemon);
    let filler = disk.fill();
    let home = Fixture::new(fx.program());
    let newcomer = home.daemon(&[]);
    // What is in the cache needs no room for itself.
    let body = mount_body("rafs", &cold.image.bootstrap, &config);
    done(&newcomer.mount("/image", &body).unwrap());
    let mut other = guest(&newcomer);
    cold.assert_reads_right(&mut other);
    let another = home.image(&home.data_source(1, 100_000), RafsVersion::V6)?;
    let body = mount_body(
        "rafs",
        &another.bootstrap,
        &image::rafs_config_localfs(&another.blobs, disk.path()),
    );
    let message = refused(&newcomer.mount("/another", &body).unwrap(), 500);
    assert!(message.contains("No space left"), "{message}");
    cold.assert_reads_right(&mut fs);
    fs::remove_file(filler).unwrap();
    done(&newcomer.mount("/another", &body).unwrap());
    drop((other, newcomer, fs, daemon));
    Ok(())
}
