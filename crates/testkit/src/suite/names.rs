//! Names in the share: made, moved, listed, refused, and never leading out of it.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, guest};
use crate::guest::fuse::ROOT;
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

pub(super) fn namespace(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let host = |name: &str| fx.share().join(name);
    let dir = fs.mkdir(share, b"dir", 0o755).unwrap();
    assert!(dir.attr.is_dir() && host("dir").is_dir());

    fs.mknod(share, b"fifo", 0o010_644, 0).unwrap();
    assert!(fs::metadata(host("fifo")).unwrap().file_type().is_fifo());
    let plain = fs.mknod(share, b"plain", 0o100_600, 0).unwrap();
    assert_eq!(fs::metadata(host("plain")).unwrap().mode(), 0o100_600);

    let link = fs.symlink(share, b"symlink", b"../else/where").unwrap();
    assert_eq!(fs.readlink(link.nodeid).unwrap(), b"../else/where");
    let hard = fs.link(plain.nodeid, share, b"hard").unwrap();
    assert_eq!(
        (hard.nodeid, hard.attr.ino, hard.attr.nlink),
        (plain.nodeid, plain.attr.ino, 2)
    );

    fs.rename((share, b"plain"), (dir.nodeid, b"moved")).unwrap();
    assert!(!host("plain").exists() && host("dir/moved").exists());
    let clash = fs
        .rename2((share, b"hard"), (dir.nodeid, b"moved"), NOREPLACE)
        .unwrap_err();
    assert_eq!(clash.errno(), Some(Errno::EXIST));
    fs.write_file(format!("{SHARE}/a"), b"was a").unwrap();
    fs.write_file(format!("{SHARE}/b"), b"was b").unwrap();
    fs.rename2((share, b"a"), (share, b"b"), EXCHANGE).unwrap();
    assert_eq!(fs::read(host("a")).unwrap(), b"was b");

    assert_eq!(
        fs.rmdir(share, b"dir").unwrap_err().errno(),
        Some(Errno::NOTEMPTY)
    );
    fs.unlink(dir.nodeid, b"moved").unwrap();
    fs.rmdir(share, b"dir").unwrap();
    for name in ["a", "b", "fifo", "symlink", "hard"] {
        fs.unlink(share, name.as_bytes()).unwrap();
    }
    assert_eq!(fs::read_dir(fx.share()).unwrap().count(), 0);
    Ok(())
}

pub(super) fn errnos(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    fs::create_dir(fx.share().join("dir")).unwrap();
    fs::write(fx.share().join("file"), "").unwrap();
    let file = fs.lookup(share, b"file").unwrap().nodeid;
    let (excl, create) = (0o200, 0o100);
    let cases = [
        (
            "lookup of a missing name",
            fs.lookup(share, b"none").map(drop),
            Errno::NOENT,
        ),
        (
            "lookup below a file",
            fs.lookup(file, b"x").map(drop),
            Errno::NOTDIR,
        ),
        (
            "lookup of 256 bytes",
            fs.lookup(share, &[b'n'; 256]).map(drop),
            Errno::NAMETOOLONG,
        ),
        (
            "exclusive create",
            fs.create(share, b"file", 0o600, excl | create | 2).map(drop),
            Errno::EXIST,
        ),
        (
            "mkdir over a file",
            fs.mkdir(share, b"file", 0o700).map(drop),
            Errno::EXIST,
        ),
        ("unlink of a directory", fs.unlink(share, b"dir"), Errno::ISDIR),
        ("rmdir of a file", fs.rmdir(share, b"file"), Errno::NOTDIR),
        (
            "unlink of a missing name",
            fs.unlink(share, b"none"),
            Errno::NOENT,
        ),
        (
            "rename of a missing name",
            fs.rename((share, b"none"), (share, b"x")),
            Errno::NOENT,
        ),
        (
            "rename of a file over a directory",
            fs.rename((share, b"file"), (share, b"dir")),
            Errno::ISDIR,
        ),
    ];
    for (what, result, expected) in cases {
        assert_eq!(result.err().and_then(|e| e.errno()), Some(expected), "{what}");
    }
    Ok(())
}

pub(super) fn listing(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let expected: BTreeSet<Vec<u8>> = (0..2000).map(|i| format!("name-{i:04}").into_bytes()).collect();
    for name in &expected {
        fs::write(fx.share().join(String::from_utf8_lossy(name).as_ref()), "").unwrap();
    }
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let listed = fs.list(share).unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(listed.len(), expected.len());
    assert!(listed.iter().all(|(_, e)| e.nodeid != 0 && e.attr.is_file()));

    // Plain READDIR in small pieces: each begins where the last ended, nothing twice, nothing missed.
    let handle = fs.opendir(share).unwrap();
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let batch = fs.readdir(share, handle.fh, offset, 1000).unwrap();
        let Some(last) = batch.last() else { break };
        offset = last.offset;
        names.extend(batch.into_iter().map(|e| e.name).filter(|n| !n.starts_with(b".")));
    }
    fs.releasedir(share, handle).unwrap();
    assert_eq!(names.len(), expected.len());
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);

    let root = fs.list(ROOT).unwrap();
    assert_eq!(
        root.iter().map(|(n, _)| n.as_slice()).collect::<Vec<_>>(),
        [&b"containers"[..]]
    );
    Ok(())
}

pub(super) fn no_way_out(fx: &Fixture) -> Outcome {
    fs::write(fx.path("secret"), "outside").unwrap();
    fs::create_dir(fx.share().join("dir")).unwrap();
    std::os::unix::fs::symlink("../secret", fx.share().join("symlink")).unwrap();
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap();
    let dir = fs.lookup(share.nodeid, b"dir").unwrap().nodeid;
    let outside = fs::metadata(fx.path("secret")).unwrap().ino();
    let parent = fs::metadata(fx.path(".")).unwrap().ino();
    for (node, name) in [
        (share.nodeid, &b"../secret"[..]),
        (share.nodeid, b".."),
        (share.nodeid, b"dir/../../secret"),
        (share.nodeid, b"/etc/passwd"),
        (dir, b"../../secret"),
    ] {
        // `..` may be answered with the share's root; anything beyond may not.
        if let Ok(entry) = fs.lookup(node, name) {
            assert!(
                entry.attr.ino != outside && entry.attr.ino != parent,
                "{}",
                String::from_utf8_lossy(name)
            );
            assert!(
                fs.lookup(entry.nodeid, b"secret").is_err(),
                "{}",
                String::from_utf8_lossy(name)
            );
        }
    }
    for name in [&b"../new"[..], b"dir/../../new", b"/tmp/nydusbox-new"] {
        assert!(fs.mkdir(share.nodeid, name, 0o700).is_err());
        assert!(fs.create(share.nodeid, name, 0o600, 2).is_err());
        assert!(fs.symlink(share.nodeid, name, b"x").is_err());
        assert!(fs.rename((share.nodeid, b"dir"), (share.nodeid, name)).is_err());
        assert!(fs.link(dir, share.nodeid, name).is_err());
    }
    assert!(!fx.path("new").exists());
    // The guest resolves symlinks; the daemon must not open through one.
    let link = fs.lookup(share.nodeid, b"symlink").unwrap();
    assert!(link.attr.is_symlink());
    if let Ok(handle) = fs.open(link.nodeid, 0) {
        assert!(handle.zero_message || fs.read(link.nodeid, handle.fh, 0, 64).is_err());
    }
    Ok(())
}
