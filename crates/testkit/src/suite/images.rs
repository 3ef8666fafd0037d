//! Images: every file equal to its source, from every kind of backend, and never wrong data.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, done, guest, refused};
use crate::blob_server::{BlobServer, Fault, total_bytes};
use crate::guest::FuseClient;
use crate::guest::fuse::ops;
use crate::guest::fuse::paths::TreeSum;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::peers::{Peer, Skip, require};
use crate::tree;

type Outcome = Result<(), Skip>;

#[track_caller]
fn assert_equal(seen: &TreeSum, expected: &TreeSum) {
    for (path, leaf) in expected {
        assert_eq!(seen.get(path), Some(leaf), "{}", String::from_utf8_lossy(path));
    }
    let extra: Vec<_> = seen.keys().filter(|p| !expected.contains_key(*p)).collect();
    assert!(extra.is_empty(), "not in the source: {extra:?}");
}

fn equals_its_source(fx: &Fixture, version: RafsVersion) -> Outcome {
    let (source, expected) = fx.source();
    let image = fx.image(&source, version)?;
    let daemon = fx.sharing_daemon();
    done(&daemon.mount("/rafs/c1/lowerdir", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    // Cold and then from the cache.
    for _pass in 0..2 {
        assert_equal(&fs.checksum_tree("/rafs/c1/lowerdir").unwrap(), &expected);
    }
    fs.forget_all().unwrap();
    assert!(daemon.is_alive());
    Ok(())
}

pub(super) fn v5_equals_its_source(fx: &Fixture) -> Outcome {
    equals_its_source(fx, RafsVersion::V5)
}

pub(super) fn v6_equals_its_source(fx: &Fixture) -> Outcome {
    equals_its_source(fx, RafsVersion::V6)
}

pub(super) fn xattrs(fx: &Fixture) -> Outcome {
    let (source, _) = fx.source();
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    let node = fs.resolve("/image/odd/attributes").unwrap().nodeid;
    for (name, value) in tree::XATTRS {
        assert_eq!(fs.getxattr(node, name.as_bytes()).unwrap(), *value, "{name}");
    }
    assert_eq!(fs.listxattr(node).unwrap().len(), tree::XATTRS.len());
    Ok(())
}

pub(super) fn read_only(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    let root = fs.resolve("/image").unwrap().nodeid;
    let file = fs.lookup(root, b"file-0").unwrap().nodeid;
    let refusals = [
        fs.mkdir(root, b"dir", 0o700).map(drop),
        fs.unlink(root, b"file-0"),
        fs.rename((root, b"file-0"), (root, b"x")),
        fs.create(root, b"new", 0o600, 2).map(drop),
        fs.write(file, 0, 0, b"x").map(drop),
    ];
    for (i, result) in refusals.into_iter().enumerate() {
        let errno = result.err().and_then(|e| e.errno());
        assert!(
            errno.is_some_and(
                |e| [Errno::ROFS, Errno::NOSYS, Errno::ACCESS, Errno::PERM, Errno::BADF].contains(&e)
            ),
            "refusal {i}: {errno:?}"
        );
    }
    assert!(fs.read_file("/image/file-0").unwrap() == fs::read(source.join("file-0")).unwrap());
    Ok(())
}

/// A name that no file can have is no reason to remember it.
pub(super) fn names_end(fx: &Fixture) -> Outcome {
    let image = fx.image(&fx.data_source(1, 10), RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    done(&daemon.mount("/image", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    let image = fs.resolve("/image").unwrap().nodeid;
    let share = fs.resolve(SHARE).unwrap().nodeid;
    for node in [image, share] {
        let mut look_up = |len| fs.lookup(node, &vec![b'n'; len]).unwrap_err().errno();
        assert_eq!(look_up(255), Some(Errno::NOENT));
        assert_eq!(look_up(256), Some(Errno::NAMETOOLONG));
        assert_eq!(look_up(4095), Some(Errno::NAMETOOLONG));
    }
    Ok(())
}

/// In RAFS v6 a file may have a time or not; in v5 0 is none.
pub(super) fn of_1970(fx: &Fixture) -> Outcome {
    let source = fx.data_source(0, 0);
    let file = fs::File::create(source.join("file")).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH))
        .unwrap();
    let v6 = fx.image(&source, RafsVersion::V6)?;
    let builder = require(Peer::NydusImage)?;
    let v5 = image::build(&builder, &source, &fx.path("v5"), RafsVersion::V5).unwrap();
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/v6", &fx.local_body(&v6)).unwrap());
    done(&daemon.mount("/v5", &fx.local_body(&v5)).unwrap());
    let mut fs = guest(&daemon);
    let dated = fs.resolve("/v6/file").unwrap();
    assert_eq!(dated.attr.mtime, 0);
    // The same inode in its compact form, which has no place for a time: the lowest bit says which it is. There are 32
    // bytes for each number, from the beginning of what nydus-image writes.
    let mut bootstrap = fs::read(&v6.bootstrap).unwrap();
    let at = usize::try_from(dated.attr.ino & 0xffff_ffff).unwrap() * 32;
    assert_eq!(bootstrap[at] & 1, 1);
    bootstrap[at] -= 1;
    let compact = Image {
        bootstrap: fx.path("compact"),
        ..v6
    };
    fs::write(&compact.bootstrap, bootstrap).unwrap();
    done(&daemon.mount("/compact", &fx.local_body(&compact)).unwrap());
    let long_ago = 1_500_000_000;
    for undated in ["/compact/file", "/v5/file"] {
        let time = fs.resolve(undated).unwrap().attr.mtime;
        assert!(time > long_ago, "{undated} is not of the mount: {time}");
    }
    Ok(())
}

pub(super) fn remounted(fx: &Fixture) -> Outcome {
    let source = fx.data_source(2, 3 << 20);
    let first = fx.image(&source, RafsVersion::V6)?;
    let other_source = fx.path("other-source");
    fs::create_dir(&other_source).unwrap();
    // What comes behind it is elsewhere in the blob.
    fs::write(other_source.join("file-0"), tree::bytes(98, 2 << 20)).unwrap();
    fs::write(other_source.join("file-1"), tree::bytes(99, 3 << 20)).unwrap();
    let builder = require(Peer::NydusImage)?;
    let other = image::build(&builder, &other_source, &fx.path("other-image"), RafsVersion::V6).unwrap();
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &fx.local_body(&first)).unwrap());
    let mut fs = guest(&daemon);
    let remount = |cache: &str| {
        let config = image::rafs_config_localfs(&other.blobs, &fx.path(cache));
        let body = mount_body("rafs", &other.bootstrap, &config);
        daemon
            .api("PUT", "/api/v1/mount?mountpoint=/image", Some(&body))
            .unwrap()
    };
    fs::write(fx.path("no-directory"), "").unwrap();
    let failed = remount("no-directory/cache");
    assert_ne!(failed.status, 204, "{failed:?}");
    assert!(fs.read_file("/image/file-1").unwrap() == tree::bytes(2, 3 << 20));
    done(&remount("cache"));
    assert!(fs.read_file("/image/file-1").unwrap() == tree::bytes(99, 3 << 20));
    assert!(fs.read_file("/image/file-0").unwrap() == tree::bytes(98, 2 << 20));
    Ok(())
}

pub(super) fn many_in_flight(fx: &Fixture) -> Outcome {
    let source = fx.data_source(16, 4 << 20);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    let contents: Vec<_> = (0..16)
        .map(|i| fs::read(source.join(format!("file-{i}"))).unwrap())
        .collect();
    for size in [4096_u32, 1 << 20] {
        let mut reads = Vec::new();
        for i in 0..64_u64 {
            let node = fs.resolve(format!("/image/file-{}", i % 16)).unwrap().nodeid;
            reads.push(ops::read(node, 0, (i / 16) << 20, size));
        }
        for (i, ticket) in fs.guest().submit_batch(&reads).unwrap().into_iter().enumerate() {
            let whole = &contents[i % 16];
            let from = (i / 16) << 20;
            assert!(
                fs.wait(ticket).unwrap() == whole[from..from + size as usize],
                "read {i} of {size}"
            );
        }
    }
    Ok(())
}

pub(super) fn v5_small_reads(fx: &Fixture) -> Outcome {
    let source = fx.path("source");
    fs::create_dir(&source).unwrap();
    for i in 0..200 {
        fs::write(
            source.join(format!("small-{i}")),
            tree::bytes(i + 1, 100 + usize::try_from(i).unwrap() * 37),
        )
        .unwrap();
    }
    let image = fx.image(&source, RafsVersion::V5)?;
    let daemon = fx.daemon(&[]);
    let config = image::rafs_config_localfs(&image.blobs, &fx.path("cache"));
    done(
        &daemon
            .mount("/image", &mount_body("rafs", &image.bootstrap, &config))
            .unwrap(),
    );
    let mut fs = guest(&daemon);
    for i in 0..200 {
        let expected = tree::bytes(i + 1, 100 + usize::try_from(i).unwrap() * 37);
        let entry = fs.resolve(format!("/image/small-{i}")).unwrap();
        // Exactly as much room as there is data: nothing widened may come back.
        let size = u32::try_from(expected.len()).unwrap();
        assert_eq!(fs.read(entry.nodeid, 0, 0, size).unwrap(), expected, "small-{i}");
    }
    Ok(())
}

fn served_by(fx: &Fixture, image: &Image, server: &BlobServer, config: &str, source: &Path) {
    let daemon = fx.daemon(&[]);
    done(
        &daemon
            .mount("/image", &mount_body("rafs", &image.bootstrap, config))
            .unwrap(),
    );
    let before = server.counters().bytes;
    let mut fs = guest(&daemon);
    assert_eq!(
        fs.read_file("/image/file-0").unwrap(),
        fs::read(source.join("file-0")).unwrap()
    );
    let one = server.counters().bytes - before;
    let all = total_bytes(&image.blobs).unwrap();
    assert!(one > 0 && one < all, "one of 8 files took {one} of {all} bytes");
    assert_equal(&fs.checksum_tree("/image").unwrap(), &tree::sum(source).unwrap());
    let fetched = server.counters().gets;
    assert_equal(&fs.checksum_tree("/image").unwrap(), &tree::sum(source).unwrap());
    assert_eq!(
        server.counters().gets,
        fetched,
        "the second pass comes from the cache"
    );
}

pub(super) fn over_http_proxy(fx: &Fixture) -> Outcome {
    let source = fx.data_source(8, 3_000_000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    let config = image::rafs_config_http_proxy(&server.address(), &fx.path("cache"));
    served_by(fx, &image, &server, &config, &source);
    Ok(())
}

pub(super) fn from_a_registry(fx: &Fixture) -> Outcome {
    let source = fx.data_source(8, 3_000_000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    let config = image::rafs_config_registry(&server.address(), "test/image", &fx.path("cache"));
    served_by(fx, &image, &server, &config, &source);
    Ok(())
}

/// Reads a whole file with whatever the backend gives: the right bytes, or an error.
fn read_or_error(fs: &mut FuseClient, path: &str, expected: &[u8]) -> bool {
    match fs.read_file(path) {
        Ok(bytes) => {
            assert!(bytes == expected, "{path} has wrong data");
            true
        }
        Err(error) => {
            assert!(error.errno().is_some(), "{path}: {error:?}");
            false
        }
    }
}

pub(super) fn faulty_backend(fx: &Fixture) -> Outcome {
    let source = fx.data_source(8, 500_000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    let daemon = fx.daemon(&[]);
    let config = image::rafs_config_http_proxy(&server.address(), &fx.path("cache"));
    done(
        &daemon
            .mount("/image", &mount_body("rafs", &image.bootstrap, &config))
            .unwrap(),
    );
    let mut fs = guest(&daemon);
    let content = |i: u64| tree::bytes(i + 1, 500_000);
    // The blob's own metadata is fetched at the first read; that one is not disturbed.
    assert!(read_or_error(&mut fs, "/image/file-0", &content(0)));
    let faults = [
        Fault::Status(503),
        Fault::Status(404),
        Fault::Truncate,
        Fault::Short,
    ];
    for (i, fault) in (1..).zip(faults) {
        let path = format!("/image/file-{i}");
        server.fail_next(fault, 1);
        let at_once = read_or_error(&mut fs, &path, &content(i));
        eprintln!(
            "{fault:?}: {}",
            if at_once { "read after a retry" } else { "an errno" }
        );
        server.fail_next(fault, 0);
        assert!(
            read_or_error(&mut fs, &path, &content(i)),
            "{fault:?} is over, the read works"
        );
    }
    Ok(())
}

pub(super) fn two_hundred_and_fifty_five(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    let body = fx.local_body(&image);
    let mut refusals = Vec::new();
    for i in 1..=300 {
        let answer = daemon.mount(&format!("/rafs/c{i}/lowerdir"), &body).unwrap();
        if answer.status == 204 {
            assert!(
                refusals.is_empty(),
                "mount {i} succeeded after {} refusals",
                refusals.len()
            );
        } else {
            refusals.push((i, answer));
        }
    }
    let (first, answer) = refusals.first().unwrap();
    assert_eq!((*first, refusals.len()), (255, 46));
    let message = refused(answer, 500);
    assert!(message.contains("255"), "the limit is in the message: {message}");
    let mut fs = guest(&daemon);
    fs::write(fx.share().join("file"), "content").unwrap();
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    for i in [1, 100, 254] {
        assert_eq!(
            fs.read_file(format!("/rafs/c{i}/lowerdir/file-0")).unwrap().len(),
            5000
        );
    }
    // A slot that was given back is a slot again.
    done(&daemon.umount("/rafs/c100/lowerdir").unwrap());
    done(&daemon.mount("/rafs/again/lowerdir", &body).unwrap());
    assert_eq!(fs.read_file("/rafs/again/lowerdir/file-0").unwrap().len(), 5000);
    Ok(())
}
