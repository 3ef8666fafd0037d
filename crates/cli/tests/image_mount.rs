//! `nydusbox image mount`: the files under the mount are the image's, and it goes when and as it should.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[expect(dead_code, reason = "only layers of its own are made here")]
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::host_mount::{Mounted, can_mount, image};
use common::{Dir, told, with_hangup};
use nydusbox_image::source::{AccessOptions, MediaType};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// A file as it is compared.
#[derive(Debug, PartialEq, Eq)]
struct File {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    mtime: i64,
    attribute: Option<Vec<u8>>,
    content: Option<Vec<u8>>,
    target: Option<PathBuf>,
}

/// Everything below `root`, whose own time isn't kept.
fn files(root: &Path) -> BTreeMap<PathBuf, File> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut value = vec![0; 64];
            let attribute = lgetxattr(&path, "user.test", &mut value[..]).ok().map(|size| {
                value.truncate(size);
                value
            });
            let file = File {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                links: if meta.is_dir() { 0 } else { meta.nlink() },
                device: meta.rdev(),
                mtime: meta.mtime(),
                attribute,
                content: meta.is_file().then(|| fs::read(&path).unwrap()),
                target: meta.is_symlink().then(|| fs::read_link(&path).unwrap()),
            };
            if meta.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), file);
        }
    }
    found
}

/// A root file system with one of each that is easily lost.
fn make_root(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let noise: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(root.join("bin/large"), noise).unwrap();
    fs::write(root.join("bin/setuid"), b"setuid").unwrap();
    chown(root.join("bin/setuid"), Some(1000), Some(50)).unwrap();
    fs::set_permissions(root.join("bin/setuid"), Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/setuid"), root.join("linked")).unwrap();
    symlink("bin/large", root.join("link")).unwrap();
    mknodat(
        CWD,
        root.join("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    lsetxattr(root.join("empty"), "user.test", b"value", XattrFlags::empty()).unwrap();
    for number in 0..300 {
        fs::write(root.join(format!("empty/{number}")), number.to_string()).unwrap();
    }
}

fn ok(command: &mut Command) {
    let (code, out, err) = told(&command.output().unwrap());
    assert_eq!(code, 0, "{command:?}: {out}{err}");
}

/// An image of a small root, built.
fn built(dir: &Dir) -> String {
    let root = dir.mkdir("root");
    fs::write(root.join("file"), b"content").unwrap();
    let out = dir.join("image");
    ok(image(dir, &["build"]).arg(&root).arg(&out));
    out.to_str().unwrap().to_owned()
}

#[test]
fn the_files_under_the_mount_are_those_the_image_was_made_of() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let root = dir.mkdir("root");
    make_root(&root);
    let expected = files(&root);

    let out = dir.join("image");
    ok(image(&dir, &["build"]).arg(&root).arg(&out));
    let mut mounted = Mounted::start(&dir, out.to_str().unwrap());
    assert_eq!(files(&mounted.at), expected);
    // Nothing can be changed.
    let refused = fs::write(mounted.at.join("new"), b"").unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
    mounted.signal(Signal::INT);
    assert_eq!(mounted.end(), Some(0));
    drop(mounted);

    // An OCI image with a gzipped layer: by reference to that, and as it is.
    let archive = dir.join("layer.tar.gz");
    ok(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=user.*", "-czf"])
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .arg("."));
    let layer = fs::read(&archive).unwrap();
    let layers = [(MediaType::ImageLayerGzip, layer.as_slice())];
    let from = layout::write_layout(&dir.join("layout"), "of", &layers).to_string();
    let to = format!("oci:{}:nydus", dir.join("ref").display());
    ok(&mut image(
        &dir,
        &[
            "convert",
            "--platform",
            "linux/amd64",
            "--mode",
            "ref",
            &from,
            &to,
        ],
    ));
    for (what, signal) in [(to, Signal::TERM), (from, Signal::HUP)] {
        let mut mounted = Mounted::start(&dir, &what);
        assert_eq!(files(&mounted.at), expected, "{what}");
        mounted.signal(signal);
        assert_eq!(mounted.end(), Some(0));
        assert!(!mounted.is_there());
    }
}

/// As `nohup` starts it.
#[test]
fn a_mount_that_is_to_outlive_its_terminal_does() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let command = image(&dir, &["mount", &built(&dir)]);
    let mut mounted = Mounted::start_by(&dir, with_hangup("--ignore-signal=HUP", &command));
    let status = fs::read_to_string(format!("/proc/{}/status", mounted.pid())).unwrap();
    let mask = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    };
    assert_eq!((mask("SigIgn:") & 1, mask("SigCgt:") & 1), (1, 0), "{status}");
    mounted.signal(Signal::HUP);
    mounted.signal(Signal::INT);
    assert_eq!(mounted.end(), Some(0));
}

#[test]
fn a_mount_that_is_in_use_goes_on_a_signal_all_the_same() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let mut mounted = Mounted::start(&dir, &built(&dir));
    // It stands in the mount until its standard input ends.
    let mut user = Command::new("cat")
        .current_dir(&mounted.at)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let open = fs::File::open(mounted.at.join("file")).unwrap();
    mounted.signal(Signal::INT);
    assert_eq!(mounted.end(), Some(0));
    assert!(!mounted.is_there());
    assert!(fs::read_dir(&mounted.at).unwrap().next().is_none());
    drop(user.stdin.take());
    assert_eq!(user.wait().unwrap().signal(), None);
    drop(open);
}

#[test]
fn who_unmounts_it_ends_the_command() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let mut mounted = Mounted::start(&dir, &built(&dir));
    unmount(&mounted.at, UnmountFlags::empty()).unwrap();
    assert_eq!(mounted.end(), Some(0));
}

#[test]
fn what_a_killed_command_leaves_is_recognised() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let built = built(&dir);
    let mut mounted = Mounted::start(&dir, &built);
    let again = || {
        let at = dir.join("mnt");
        told(
            &image(&dir, &["mount", &built, at.to_str().unwrap()])
                .output()
                .unwrap(),
        )
    };
    let (code, _, err) = again();
    assert_eq!(code, 5);
    assert!(err.contains("is mounted on"), "{err}");
    mounted.signal(Signal::KILL);
    mounted.end();
    let (code, _, err) = again();
    assert_eq!(code, 5);
    assert!(
        err.contains("whose process is gone") && err.contains("`umount "),
        "{err}"
    );
    unmount(&mounted.at, UnmountFlags::empty()).unwrap();
    drop(mounted);
    let mut mounted = Mounted::start(&dir, &built);
    mounted.signal(Signal::TERM);
    assert_eq!(mounted.end(), Some(0));
}

#[test]
fn a_signal_ends_the_wait_for_a_registry_that_says_nothing() {
    let dir = Dir::new();
    let at = dir.mkdir("mnt");
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("docker://{}/app:1", mute.local_addr().unwrap());
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = image(&dir, &["mount", &reference, at.to_str().unwrap()]);
        let command = command.stderr(Stdio::piped()).spawn().unwrap();
        let (_connection, _) = mute.accept().unwrap();
        let begun = Instant::now();
        kill_process(Pid::from_child(&command), signal).unwrap();
        let (code, _, err) = told(&command.wait_with_output().unwrap());
        assert_eq!(code, 130, "{err}");
        assert!(err.contains("cancelled"), "{err}");
        // It would wait for the registry five times as long.
        assert!(begun.elapsed() < AccessOptions::default().silence);
    }
}

#[test]
fn what_cannot_be_mounted_is_said_in_a_sentence() {
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let built = built(&dir);
    let file = dir.join("image/image.boot").into_os_string();
    let (missing, there) = (
        dir.join("missing").into_os_string(),
        dir.mkdir("there").into_os_string(),
    );
    let cases: [(&str, &OsString, &str); 3] = [
        (&built, &missing, "cannot be mounted on: "),
        (&built, &file, "cannot be mounted on: "),
        ("oci:/nowhere:x", &there, "/nowhere"),
    ];
    for (what, at, words) in cases {
        let (code, _, err) = told(&image(&dir, &["mount", what]).arg(at).output().unwrap());
        assert_eq!(code, 1, "{err}");
        assert!(err.starts_with("error: ") && err.contains(words), "{err}");
    }
}
