//! A source tree with one of everything that is easily lost.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat};

/// Whether the kernel lets this process make devices and give files away.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that compress badly, the same ones for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// What [`make`] puts under a root, the root included.
pub(crate) struct Made {
    pub(crate) regular_files: u64,
    pub(crate) directories: u64,
    pub(crate) symlinks: u64,
    pub(crate) others: u64,
    pub(crate) hard_links: u64,
}

/// Fills `root` with everything an archive can carry too.
pub(crate) fn make(root: &Path) -> Made {
    let mut made = Made {
        regular_files: 0,
        directories: 1,
        symlinks: 0,
        others: 0,
        hard_links: 0,
    };
    for dir in [
        "bin",
        "etc",
        "etc/deep",
        "etc/deep/deeper",
        "empty",
        "many",
        "dev",
    ] {
        fs::create_dir(root.join(dir)).unwrap();
        made.directories += 1;
    }
    let mut file = |name: &OsStr, content: &[u8], mode: u32| {
        let path = root.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        made.regular_files += 1;
    };
    file("empty/none".as_ref(), b"", 0o600);
    file("bin/su".as_ref(), &noise(1, 70_000), 0o4755);
    file("bin/two-chunks".as_ref(), &noise(2, (1 << 20) + 1), 0o755);
    file("bin/same-again".as_ref(), &noise(2, (1 << 20) + 1), 0o755);
    file(
        "etc/text".as_ref(),
        &b"the same line again and again\n".repeat(5000),
        0o644,
    );
    file("etc/deep/deeper/one-byte".as_ref(), b"x", 0o444);
    file("etc/.wh.not-a-whiteout".as_ref(), b"kept", 0o644);
    file("etc/attributes".as_ref(), b"has extended attributes", 0o644);
    file("etc/linked".as_ref(), b"has three names", 0o640);
    file(OsStr::from_bytes(b"etc/not-utf8-\xff\xfe"), b"bytes", 0o644);
    file("etc/sp ace\nnewline".as_ref(), b"odd", 0o644);
    // More names than fit into one directory block.
    for number in 0..600 {
        file(
            format!("many/file-with-a-rather-long-name-{number:04}").as_ref(),
            &[0x41; 3],
            0o644,
        );
    }
    sparse(&root.join("etc/sparse"));
    made.regular_files += 1;

    for other in ["bin/linked-1", "etc/deep/linked-2"] {
        fs::hard_link(root.join("etc/linked"), root.join(other)).unwrap();
        made.hard_links += 1;
    }
    for (target, link) in [
        ("su", "bin/link"),
        ("/nowhere/at/all", "etc/dangling"),
        ("../etc", "bin/to-dir"),
    ] {
        symlink(target, root.join(link)).unwrap();
        made.symlinks += 1;
    }
    symlink(OsStr::from_bytes(&[b'z'; 1000]), root.join("etc/long")).unwrap();
    made.symlinks += 1;

    let attribute = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    attribute("etc/attributes", "user.one", b"1");
    attribute("etc/attributes", "user.binary", b"\0\xff=\0");
    attribute("etc/deep", "user.on-directory", b"yes");

    mknodat(
        CWD,
        root.join("dev/fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    made.others += 1;
    if is_root() {
        let device = |name: &str, kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
        };
        device("dev/null", FileType::CharacterDevice, 1, 3);
        device("dev/wide", FileType::CharacterDevice, 259, 70_000);
        device("dev/loop", FileType::BlockDevice, 7, 0);
        made.others += 3;
        chown(root.join("etc/text"), Some(1000), Some(70_000)).unwrap();
        // Lost when a file changes its owner.
        fs::set_permissions(root.join("bin/su"), Permissions::from_mode(0o4755)).unwrap();
        // A file capability: cap_net_raw, effective (linux/capability.h, VFS_CAP_REVISION_2).
        attribute(
            "bin/su",
            "security.capability",
            &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
    }
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o1777)).unwrap();
    let time = Timespec {
        tv_sec: 1_000_000_007,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, root.join("etc/text"), &times, rustix::fs::AtFlags::empty()).unwrap();
    made
}

/// Adds what no archive can carry. How many entries that is.
pub(crate) fn add_unarchivable(root: &Path) -> u64 {
    let newline = b"a newline ends a record in the eyes of the archive's reader\n";
    lsetxattr(
        root.join("etc/attributes"),
        "user.newline",
        newline,
        XattrFlags::empty(),
    )
    .unwrap();
    // Bound by a relative name, for the sake of the 107 bytes of a socket's path.
    let path = root.join("dev/socket");
    let link = tempfile::tempdir().unwrap();
    symlink(root, link.path().join("r")).unwrap();
    drop(UnixListener::bind(link.path().join("r/dev/socket")).unwrap());
    assert!(path.exists());
    1
}

/// Gives the file with three names an extended attribute.
pub(crate) fn add_linked_attribute(root: &Path) {
    lsetxattr(
        root.join("etc/linked"),
        "user.on-linked",
        b"all names",
        XattrFlags::empty(),
    )
    .unwrap();
}

/// Pieces of content among holes, more than fit into one header.
pub(crate) fn make_sparse(path: &Path) {
    let mut file = File::create(path).unwrap();
    for piece in 0..40_u64 {
        file.seek(SeekFrom::Start(piece * 100_000)).unwrap();
        file.write_all(&noise(piece, 5000)).unwrap();
    }
    file.set_len(5_000_000).unwrap();
}

/// Two bytes of content, 3 MiB apart.
fn sparse(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.write_all(b"a").unwrap();
    file.seek(SeekFrom::Start(3 << 20)).unwrap();
    file.write_all(b"z").unwrap();
}

/// Archives `root`, in one of the two ways that keep extended attributes.
pub(crate) fn archive(root: &Path, to: &Path, gzip: bool) {
    archive_as(root, to, if gzip { &["--gzip"] } else { &[] });
}

/// The same with more options; the last `--format` counts.
pub(crate) fn archive_as(root: &Path, to: &Path, options: &[&str]) {
    let status = std::process::Command::new("tar")
        .args(["--create", "--format=pax", "--numeric-owner", "--sort=name"])
        .args(options)
        // Implies the pax format.
        .args(
            (!options.contains(&"--format=gnu"))
                .then_some(["--xattrs", "--xattrs-include=*"])
                .into_iter()
                .flatten(),
        )
        .args(
            options
                .iter()
                .any(|option| option.starts_with("--sparse-version"))
                .then_some("--sparse"),
        )
        .arg("--file")
        .arg(to)
        .arg("--directory")
        .arg(root)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
}
