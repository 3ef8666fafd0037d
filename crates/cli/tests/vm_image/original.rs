//! The image of this test, in an OCI layout: a Debian root file system, and on it layers with everything that is easily
//! lost on the way. umoci makes it, and says what its files are.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_testkit::machine::listing;
use nydusbox_testkit::tree;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

use crate::common::told;

/// How lines of its files begin, in their order. That these are found shows what both image and listing have.
pub(crate) const EXPECTED: [&str; 22] = [
    "/ 40755 7:8",
    "/opt/all 40750 0:0 mtime=981173106.250000000 links=4 [user.on-directory=79657300ff]",
    "/opt/all/at-1970 100644 0:0 size=0 mtime=0.000000000 links=1 sha256:e3b0c44298fc1c14",
    "/opt/all/before-1970 100644 0:0 size=0 mtime=-2.250000000 links=1 sha256:e3b0c44298fc1c14",
    "/opt/all/block 60600 0:0 size=0 mtime=981173106.250000000 links=1 7:3",
    "/opt/all/capable 100755 0:0 size=5 mtime=981173106.250000000 links=1 \
     [security.capability=0100000200200000000000000000000000000000,trusted.note=31,user.binary=00ff3d00] sha256:",
    "/opt/all/character 20620 0:0 size=0 mtime=981173106.250000000 links=1 259:70000",
    "/opt/all/chunks 100644 0:0 size=2097153 mtime=981173106.250000000 links=1 sha256:",
    "/opt/all/dangling 120777 0:0 size=15 mtime=981173106.250000000 links=1 -> ../../not/there",
    "/opt/all/deep/linked-too 104755 0:0 size=9 mtime=981173106.250000000 links=3 sha256:",
    "/opt/all/fifo 10600 0:0 size=0 mtime=981173106.250000000 links=1",
    "/opt/all/in-2262 100644 0:0 size=0 mtime=9214646400.123456789 links=1 sha256:e3b0c44298fc1c14",
    "/opt/all/linked 104755 0:0 size=9 mtime=981173106.250000000 links=3 first=/opt/all/deep/linked-too sha256:",
    "/opt/all/linked-again 104755 0:0 size=9 mtime=981173106.250000000 links=3 first=/opt/all/deep/linked-too sha256:",
    "/opt/all/not-utf8-%ff%fe 100644 0:0 size=5 mtime=981173106.250000000 links=1 sha256:",
    "/opt/all/owned 100640 1000:70000 size=5 mtime=981173106.250000000 links=1 sha256:",
    "/opt/all/shell 100755 0:0 ",
    "/opt/all/sp%20ace%0anewline 100644 0:0 size=3 mtime=981173106.250000000 links=1 sha256:",
    "/opt/all/tmp 41777 0:0 mtime=981173106.250000000 links=2",
    "/opt/opaque/only 100644 0:0 size=4 ",
    "/opt/replaced 100600 0:0 size=10 mtime=86400.000000000 links=1 sha256:",
    "/usr/bin/dash 100755 0:0 ",
];

/// What a layer has taken away again.
pub(crate) const GONE: [&str; 5] = [
    "/opt/opaque/below",
    "/opt/opaque/gone",
    "/usr/share/doc",
    "/usr/share/zoneinfo/UTC",
    "/etc/issue",
];

/// What a slim image is without: half of all files, with which emulated machines are slow.
const WHITEOUTS: [&str; 5] = [
    "/usr/share/doc",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/zoneinfo",
    "/etc/issue",
];

/// An image in a layout, in a directory of the test's.
pub(crate) struct Original {
    dir: PathBuf,
}

impl Original {
    /// Layers, of which the first one is `rootfs`.
    pub(crate) fn make(dir: PathBuf, rootfs: &Path) -> Self {
        let original = Self { dir };
        let in_layout = |before: &[&str], after: &[&OsStr]| {
            let mut command = Command::new("umoci");
            command.args(before).args(["--image", "layout:of"]).args(after);
            original.run(&mut command);
        };
        fs::create_dir(&original.dir).unwrap();
        original.run(Command::new("umoci").args(["init", "--layout", "layout"]));
        in_layout(&["new"], &[]);
        let everything = original.dir.join("everything");
        make_everything(&everything);
        // umoci itself keeps nothing of a second's fraction, and writes no end of the archive, without which no index
        // is made of a layer.
        for (archive, of) in [("rootfs.tar", rootfs), ("everything.tar", &everything)] {
            let mut tar = Command::new("tar");
            tar.args([
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
            ]);
            original.run(tar.args(["-cf", archive, "-C"]).arg(of).arg("."));
            in_layout(&["raw", "add-layer"], &[archive.as_ref()]);
        }
        changes(&original.dir.join("changes.tar"));
        in_layout(&["raw", "add-layer"], &["changes.tar".as_ref()]);
        fs::create_dir(original.dir.join("opaque")).unwrap();
        fs::write(original.dir.join("opaque/only"), "here").unwrap();
        in_layout(
            &["insert", "--opaque"],
            &["opaque".as_ref(), "/opt/opaque".as_ref()],
        );
        for gone in WHITEOUTS {
            in_layout(&["insert", "--whiteout"], &[gone.as_ref()]);
        }
        original
    }

    pub(crate) fn reference(&self) -> String {
        format!("oci:{}:of", self.dir.join("layout").display())
    }

    /// The listing of what umoci unpacks.
    pub(crate) fn files(&self) -> String {
        self.run(Command::new("umoci").args(["raw", "unpack", "--image", "layout:of", "unpacked"]));
        listing::of(&self.dir.join("unpacked"))
    }

    fn run(&self, command: &mut Command) {
        let (code, out, err) = told(&command.current_dir(&self.dir).output().unwrap());
        assert_eq!(code, 0, "{command:?}: {out}{err}");
    }
}

fn make_everything(root: &Path) {
    let all = root.join("opt/all");
    for dir in [
        "opt/all/deep",
        "opt/all/tmp",
        "opt/opaque/below",
        "opt/replaced",
        "etc",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    // Over which something is mounted; where there is none, its place is made.
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    let file = |name: &OsStr, content: &[u8], mode: u32| {
        fs::write(all.join(name), content).unwrap();
        fs::set_permissions(all.join(name), Permissions::from_mode(mode)).unwrap();
    };
    file("capable".as_ref(), b"pings", 0o755);
    file("chunks".as_ref(), &tree::bytes(7, (2 << 20) + 1), 0o644);
    file("linked".as_ref(), b"has three", 0o4755);
    file("owned".as_ref(), b"owned", 0o640);
    file("before-1970".as_ref(), b"", 0o644);
    file("in-2262".as_ref(), b"", 0o644);
    file("at-1970".as_ref(), b"", 0o644);
    file("sp ace\nnewline".as_ref(), b"odd", 0o644);
    file(OsStr::from_bytes(b"not-utf8-\xff\xfe"), b"bytes", 0o644);
    fs::write(root.join("opt/opaque/gone"), "gone").unwrap();
    fs::write(root.join("opt/opaque/below/gone"), "gone").unwrap();
    fs::write(root.join("opt/replaced/gone"), "gone").unwrap();
    for name in ["linked-again", "deep/linked-too"] {
        fs::hard_link(all.join("linked"), all.join(name)).unwrap();
    }
    symlink("../../not/there", all.join("dangling")).unwrap();
    let node = |name: &str, kind, mode, (major, minor)| {
        let mode = Mode::from_raw_mode(mode);
        mknodat(CWD, all.join(name), kind, mode, makedev(major, minor)).unwrap();
    };
    node("fifo", FileType::Fifo, 0o600, (0, 0));
    node("block", FileType::BlockDevice, 0o600, (7, 3));
    // More than fits into the 16 bits that device numbers once had; the mode may have been masked.
    node("character", FileType::CharacterDevice, 0o600, (259, 70_000));
    fs::set_permissions(all.join("character"), Permissions::from_mode(0o620)).unwrap();
    chown(all.join("owned"), Some(1000), Some(70_000)).unwrap();
    chown(root, Some(7), Some(8)).unwrap();
    for (dir, mode) in [("", 0o755), ("opt/all", 0o750), ("opt/all/tmp", 0o1777)] {
        fs::set_permissions(root.join(dir), Permissions::from_mode(mode)).unwrap();
    }
    let attribute = |path: &Path, name: &str, value: &[u8]| {
        lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    attribute(&all, "user.on-directory", b"yes\0\xff");
    // cap_net_raw, effective (linux/capability.h, VFS_CAP_REVISION_2).
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute(&all.join("capable"), "security.capability", &capability);
    attribute(&all.join("capable"), "user.binary", b"\0\xff=\0");
    attribute(&all.join("capable"), "trusted.note", b"1");
    set_times(root, (981_173_106, 250_000_000));
    set_times(&all.join("at-1970"), (0, 0));
    set_times(&all.join("before-1970"), (-2, 250_000_000));
    set_times(&all.join("in-2262"), (9_214_646_400, 123_456_789));
}

/// Of a file, or of a directory with everything below it.
fn set_times(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            set_times(&entry.unwrap().path(), (tv_sec, tv_nsec));
        }
    }
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A layer that no directory could be made into: it links to a file of a lower layer, and has a file where that has
/// a directory.
fn changes(archive: &Path) {
    let mut tar = tar::Builder::new(File::create(archive).unwrap());
    let header = |kind, mode| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(86_400);
        header
    };
    let mut link = header(tar::EntryType::Link, 0o755);
    link.set_size(0);
    tar.append_link(&mut link, "opt/all/shell", "usr/bin/dash")
        .unwrap();
    let mut file = header(tar::EntryType::Regular, 0o600);
    file.set_size(10);
    tar.append_data(&mut file, "opt/replaced", &b"now a file"[..])
        .unwrap();
    tar.finish().unwrap();
}
