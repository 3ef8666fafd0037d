//! Files in the share: data, holes, attributes, many requests at once. Each is checked on the host too.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, guest};
use crate::guest::fuse::ops;
use crate::guest::fuse::types::SetAttr;
use crate::peers::Skip;
use crate::tree;

type Outcome = Result<(), Skip>;

const RDWR: u32 = 2;

pub(super) fn data(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    for size in tree::SIZES {
        let content = tree::bytes(size as u64, size);
        fs.write_file(format!("{SHARE}/f-{size}"), &content).unwrap();
        assert!(
            fs::read(fx.share().join(format!("f-{size}"))).unwrap() == content,
            "on the host, {size}"
        );
        assert!(
            fs.read_file(format!("{SHARE}/f-{size}")).unwrap() == content,
            "in the guest, {size}"
        );
    }
    let node = fs.resolve(format!("{SHARE}/f-4097")).unwrap().nodeid;
    let handle = fs.open(node, RDWR).unwrap();
    let whole = tree::bytes(4097, 4097);
    // Reads that straddle pages and the end, and one beyond it.
    for (offset, size) in [
        (0, 1),
        (1, 4095),
        (4000, 4096),
        (4095, 2),
        (4096, 4096),
        (4097, 1),
        (1 << 40, 9),
    ] {
        let read = fs.read(node, handle.fh, offset, size).unwrap();
        let from = usize::try_from(offset).unwrap().min(4097);
        assert_eq!(
            read,
            whole[from..(from + size as usize).min(4097)],
            "{size} bytes at {offset}"
        );
    }
    assert_eq!(fs.write(node, handle.fh, 4095, b"across").unwrap(), 6);
    fs.fsync(node, handle.fh).unwrap();
    fs.flush(node, handle.fh).unwrap();
    fs.release(node, handle).unwrap();
    let host = fs::read(fx.share().join("f-4097")).unwrap();
    assert_eq!((host.len(), &host[4095..]), (4101, &b"across"[..]));
    Ok(())
}

pub(super) fn holes(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let node = fs.write_file(format!("{SHARE}/sparse"), b"start").unwrap().nodeid;
    let handle = fs.open(node, RDWR).unwrap();
    fs.write(node, handle.fh, 10 << 20, b"end").unwrap();
    let (data, hole) = (3, 4);
    let host = fs::File::open(fx.share().join("sparse")).unwrap();
    for (from, whence) in [(0, hole), (1 << 20, data)] {
        let expected = match whence {
            3 => rustix::fs::seek(&host, rustix::fs::SeekFrom::Data(from)),
            _ => rustix::fs::seek(&host, rustix::fs::SeekFrom::Hole(from)),
        };
        // Without it the guest's kernel takes the whole file for data, which is right, too.
        match fs.lseek(node, handle.fh, from, whence) {
            Err(error) if error.errno() == Some(Errno::NOSYS) => {}
            found => assert_eq!(found.unwrap(), expected.unwrap(), "{whence} from {from}"),
        }
    }
    assert_eq!(fs.read(node, handle.fh, 5 << 20, 4096).unwrap(), [0; 4096]);
    fs.fallocate(node, handle.fh, 0, 20 << 20, 0).unwrap();
    assert_eq!(fs::metadata(fx.share().join("sparse")).unwrap().len(), 20 << 20);
    // KEEP_SIZE | PUNCH_HOLE
    fs.fallocate(node, handle.fh, 0, 4096, 3).unwrap();
    let mut start = [1; 5];
    host.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [0; 5]);
    fs.release(node, handle).unwrap();
    Ok(())
}

pub(super) fn attributes(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let node = fs.write_file(format!("{SHARE}/file"), &[7; 5000]).unwrap().nodeid;
    let on_host = || fs::metadata(fx.share().join("file")).unwrap();
    let set = |change: fn(&mut SetAttr)| {
        let mut set = SetAttr::default();
        change(&mut set);
        set
    };
    assert_eq!(
        fs.setattr(node, &set(|s| s.mode = Some(0o640))).unwrap().mode,
        0o100_640
    );
    assert_eq!(on_host().mode(), 0o100_640);
    let attr = fs
        .setattr(node, &set(|s| (s.uid, s.gid) = (Some(12), Some(34))))
        .unwrap();
    assert_eq!(
        (attr.uid, attr.gid, on_host().uid(), on_host().gid()),
        (12, 34, 12, 34)
    );
    for size in [100, 0, 9000] {
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        assert_eq!(
            (fs.setattr(node, &change).unwrap().size, on_host().len()),
            (size, size)
        );
    }
    let attr = fs
        .setattr(node, &set(|s| s.mtime = Some((1_000_000_000, 123_456_789))))
        .unwrap();
    assert_eq!((attr.mtime, attr.mtime_nsec), (1_000_000_000, 123_456_789));
    assert_eq!(
        (on_host().mtime(), on_host().mtime_nsec()),
        (1_000_000_000, 123_456_789)
    );
    assert_eq!(fs.getattr(node).unwrap(), attr);
    fs.access(node, 4).unwrap();
    let stat = fs.statfs(node).unwrap();
    assert!(
        stat.blocks > 0 && stat.bsize > 0 && stat.namelen >= 255,
        "{stat:?}"
    );
    Ok(())
}

pub(super) fn xattrs(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let node = fs.write_file(format!("{SHARE}/file"), b"").unwrap().nodeid;
    for (name, value) in tree::XATTRS {
        fs.setxattr(node, name.as_bytes(), value, 0).unwrap();
        assert_eq!(fs.getxattr(node, name.as_bytes()).unwrap(), *value);
        let mut on_host = [0; 64];
        let len = rustix::fs::lgetxattr(fx.share().join("file"), *name, &mut on_host).unwrap();
        assert_eq!(&on_host[..len], *value);
    }
    let mut listed = fs.listxattr(node).unwrap();
    listed.sort();
    assert_eq!(listed, [b"user.binary".to_vec(), b"user.short".to_vec()]);
    assert_eq!(
        fs.setxattr(node, b"user.short", b"x", 1).unwrap_err().errno(),
        Some(Errno::EXIST)
    );
    fs.removexattr(node, b"user.short").unwrap();
    assert_eq!(
        fs.getxattr(node, b"user.short").unwrap_err().errno(),
        Some(Errno::NODATA)
    );
    assert_eq!(
        fs.removexattr(node, b"user.short").unwrap_err().errno(),
        Some(Errno::NODATA)
    );
    Ok(())
}

pub(super) fn ownership(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let open = SetAttr {
        mode: Some(0o777),
        ..SetAttr::default()
    };
    fs.setattr(share, &open).unwrap();
    fs.act_as(1234, 5678);
    fs.create(share, b"file", 0o644, RDWR).unwrap();
    fs.mkdir(share, b"dir", 0o755).unwrap();
    fs.symlink(share, b"link", b"file").unwrap();
    fs.act_as(0, 0);
    fs.create(share, b"root", 0o644, RDWR).unwrap();
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(fx.share().join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(
        [owner("file"), owner("dir"), owner("link"), owner("root")],
        [(1234, 5678), (1234, 5678), (1234, 5678), (0, 0)]
    );
    Ok(())
}

pub(super) fn unlinked_but_open(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let (file, handle) = fs.create(share, b"file", 0o644, RDWR).unwrap();
    fs.write(file.nodeid, handle.fh, 0, b"still here").unwrap();
    fs.unlink(share, b"file").unwrap();
    assert_eq!(fs.lookup(share, b"file").unwrap_err().errno(), Some(Errno::NOENT));
    assert_eq!(fs.read(file.nodeid, handle.fh, 0, 4096).unwrap(), b"still here");
    assert_eq!(fs.getattr(file.nodeid).unwrap().nlink, 0);
    fs.release(file.nodeid, handle).unwrap();
    fs.forget(file.nodeid, 1).unwrap();
    Ok(())
}

pub(super) fn many_in_flight(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let content = tree::bytes(5, 64 << 20);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let (file, handle) = fs.create(share, b"big", 0o644, RDWR).unwrap();
    let chunk = 1 << 20;
    let writes: Vec<_> = content
        .chunks(chunk)
        .enumerate()
        .map(|(i, part)| ops::write(file.nodeid, handle.fh, (i * chunk) as u64, part))
        .collect();
    for ticket in fs.guest().submit_batch(&writes).unwrap() {
        fs.wait(ticket).unwrap();
    }
    assert!(
        fs::read(fx.share().join("big")).unwrap() == content,
        "64 writes of 1 MiB at once"
    );
    for size in [4096_u32, 1 << 20] {
        let reads: Vec<_> = (0..64)
            .map(|i| ops::read(file.nodeid, handle.fh, i * u64::from(size), size))
            .collect();
        for (i, ticket) in fs.guest().submit_batch(&reads).unwrap().into_iter().enumerate() {
            let from = i * size as usize;
            assert!(
                fs.wait(ticket).unwrap() == content[from..from + size as usize],
                "read {i} of {size}"
            );
        }
    }
    fs.release(file.nodeid, handle).unwrap();
    Ok(())
}
