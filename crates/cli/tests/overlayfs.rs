//! The mount helper with real overlays, in a mount namespace of their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Dir, nydusbox, told};

/// Options with an image for a runtime; decoded, the secret is in it.
const EXTRA: &str = "extraoption=eyJjb25maWciOiJQTEFOVEVEIn0=";

/// `unshare` into a namespace where one may mount; none, with the reason said, where the machine forbids it.
fn namespace() -> Option<Command> {
    let command = || {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .stdin(Stdio::null());
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("--");
        command
    };
    let probe = command().args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    match probe {
        Ok(output) if output.status.success() => Some(command()),
        refused => {
            let reason = format!("no mounts in a namespace of one's own: {refused:?}");
            let required = std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_some_and(|v| v == "1");
            assert!(!required, "{reason}");
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// Runs `script` in such a namespace with a tmpfs as its working directory and `$HELPER` being nydus-overlayfs.
fn in_namespace(script: &str) -> Option<Output> {
    in_namespace_at(|_| script.to_owned())
}

/// The same for a script that is made for its working directory.
fn in_namespace_at(script: impl Fn(&Path) -> String) -> Option<Output> {
    let dir = Dir::new();
    let helper = dir.join("nydus-overlayfs");
    symlink(env!("CARGO_BIN_EXE_nydusbox"), &helper).unwrap();
    let tmp = dir.mkdir("tmp");
    let script = format!(
        "set -e; mount -t tmpfs none {0}; cd {0}; {1}",
        tmp.display(),
        script(&tmp)
    );
    let output = namespace()?
        .args(["sh", "-c", &script])
        .env("HELPER", &helper)
        .env("NYDUSBOX", env!("CARGO_BIN_EXE_nydusbox"))
        .output()
        .unwrap();
    Some(output)
}

fn succeeds(script: &str) -> Option<String> {
    let (code, out, err) = told(&in_namespace(script)?);
    assert_eq!(code, 0, "{out}{err}");
    Some(out)
}

/// `count` layers below `root`, each with a file of its own, named by `name` (an arithmetic or text of `$i`); then
/// options for them in `$OPTS`, the last made being the topmost.
fn layers(root: &str, count: usize, name: &str) -> String {
    format!(
        "R=$PWD/{root}; mkdir -p $R/up/fs $R/up/work merged; L=; i=1; \
         while [ $i -le {count} ]; do n={name}; mkdir -p $R/$n/fs; echo $i > $R/$n/fs/file$i; echo $i > $R/$n/fs/top; \
         L=$R/$n/fs${{L:+:}}$L; i=$((i+1)); done; \
         OPTS=workdir=$R/up/work,upperdir=$R/up/fs,lowerdir=$L,{EXTRA},dev,suid; "
    )
}

#[test]
fn options_for_a_runtime_are_dropped_and_the_overlay_works() {
    let script = layers("s", 2, "$i")
        + "$HELPER overlay merged -o $OPTS; cat merged/file1 merged/file2 merged/top; echo new > merged/new; \
           cat s/up/fs/new; grep merged /proc/self/mountinfo";
    let Some(out) = succeeds(&script) else { return };
    let mut lines = out.lines();
    assert_eq!([(); 4].map(|()| lines.next().unwrap()), ["1", "2", "2", "new"]);
    let mountinfo = lines.next().unwrap();
    assert!(mountinfo.contains(" - overlay overlay rw,"), "{mountinfo}");
    assert!(
        !mountinfo.contains("nosuid") && !mountinfo.contains("nodev"),
        "{mountinfo}"
    );
}

/// As containerd's snapshots arrive: an option each, and the helper found by mount.fuse, by name and by path.
#[test]
fn containerds_way_through_mount_fuse_ends_in_an_overlay() {
    if common::require("mount.fuse3", &[Some("/usr/sbin/mount.fuse3".into())]).is_none() {
        return;
    }
    let script = layers("s", 2, "$i")
        + &format!(
            "mkdir bin; cp -P $HELPER bin/nydus-overlayfs; PATH=$PWD/bin:$PATH; T=$PWD/merged; \
             set -- -o workdir=$R/up/work -o upperdir=$R/up/fs -o lowerdir=$L -o {EXTRA}; \
             mount.fuse3 overlay $T \"$@\" -t nydus-overlayfs; cat merged/top; umount merged; \
             mount.fuse3 overlay $T \"$@\" -t $PWD/bin/nydus-overlayfs; cat merged/top"
        );
    let Some(out) = succeeds(&script) else { return };
    assert_eq!(out, "2\n2\n");
}

#[test]
fn the_subcommand_takes_options_in_any_place_and_number() {
    let script = layers("s", 2, "$i")
        + "$NYDUSBOX overlayfs -n -o ro,nosuid overlay merged -s -olowerdir=$L -o io.katacontainers.volume=x -v \
           -t fuse.nydus-overlayfs; cat merged/top; ! touch merged/new 2>/dev/null; grep -c nosuid /proc/self/mountinfo";
    let Some(out) = succeeds(&script) else { return };
    assert_eq!(out.lines().next().unwrap(), "2");
}

/// The paths of 128 layers take more than a page; relative to where all are they fit.
#[test]
fn layers_of_a_deep_snapshotter_are_mounted_relative_to_it() {
    let root = "var/lib/containerd/io.containerd.snapshotter.v1.nydus/snapshots";
    let script = layers(root, 128, "$i")
        + "test ${#OPTS} -gt 8192; $HELPER overlay merged -o $OPTS; cat merged/top; ls merged | wc -l; \
           cat merged/file1 merged/file64; grep -o lowerdir=[^:]* /proc/self/mountinfo; echo x > merged/x; cat $R/up/fs/x";
    let Some(out) = succeeds(&script) else { return };
    assert_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["128", "129", "1", "64", "lowerdir=128/fs", "x"]
    );
}

/// Names of 200 bytes fit in no page even relative to their directory.
#[test]
fn layers_with_long_names_are_mounted_by_descriptor() {
    let long = "n".repeat(195);
    let script = layers("s", 128, &format!("{long}$i"))
        + "test ${#OPTS} -gt 25600; $HELPER overlay merged -o $OPTS; cat merged/top; ls merged | wc -l; \
           cat merged/file1 merged/file64; echo x > merged/x; cat $R/up/fs/x";
    let Some(out) = succeeds(&script) else { return };
    assert_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["128", "129", "1", "64", "x"]
    );
}

/// The kernel takes 500 layers; the helper's own descriptors must not run out before.
#[test]
fn as_many_layers_as_the_kernel_takes() {
    let script = layers("s", 500, &format!("{}$i", "n".repeat(60)))
        + "ulimit -Sn 1024; $HELPER overlay merged -o $OPTS; cat merged/top; ls merged | wc -l";
    let Some(out) = succeeds(&script) else { return };
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["500", "501"]);
}

/// Lower directories in `root` whose option is `len` bytes long.
fn lowers_of_length(root: &Path, len: usize) -> Vec<String> {
    let dir = |name: String| format!("{}/{name}", root.display());
    let mut lowers: Vec<String> = Vec::new();
    loop {
        let left = len - "lowerdir=".len() - lowers.iter().map(|l| l.len() + 1).sum::<usize>();
        let name = left - dir(String::new()).len();
        let n = lowers.len();
        // The last name takes what is left, which two names of this length leave long enough.
        if name <= 250 {
            lowers.push(dir(format!("l{n:0width$}", width = name - 1)));
            return lowers;
        }
        lowers.push(dir(format!("l{n:099}")));
    }
}

/// Data of exactly a page without its NUL goes as it is; of one byte more, it is shortened.
#[test]
fn the_limit_is_the_kernels() {
    for (len, shown) in [(4095, "lowerdir=/"), (4096, "lowerdir=l")] {
        let output = in_namespace_at(|tmp| {
            let lowers = lowers_of_length(tmp, len);
            let option = format!("lowerdir={}", lowers.join(":"));
            assert_eq!(option.len(), len);
            format!(
                "mkdir merged {}; $HELPER overlay merged -o {option}; grep -o lowerdir=. /proc/self/mountinfo",
                lowers.join(" ")
            )
        });
        let Some(output) = output else { return };
        let (_, out, err) = told(&output);
        assert_eq!(out.trim(), shown, "{len}: {err}");
    }
}

#[test]
fn a_failure_is_one_sentence_with_a_hint_and_without_the_options() {
    let Some(output) = in_namespace(
        "mkdir -p l merged; $HELPER overlay merged -o lowerdir=$PWD/l,extraoption=PLANTED,nonsense=PLANTED",
    ) else {
        return;
    };
    let (code, out, err) = told(&output);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err.lines().count(), 2, "{err}");
    assert!(
        err.starts_with("error: failed to mount an overlay on merged: the kernel refuses it: Invalid"),
        "{err}"
    );
    assert!(!err.contains("PLANTED"), "{err}");
}

/// What needs no namespace: everything is refused before the kernel is asked.
#[test]
fn what_is_missing_is_named() {
    let dir = Dir::new();
    let (lower, merged) = (dir.mkdir("lower"), dir.mkdir("merged"));
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let run = |target: &Path, options: &str| {
        told(
            &nydusbox()
                .args(["overlayfs", "overlay"])
                .arg(target)
                .args(["-o", options])
                .output()
                .unwrap(),
        )
    };
    let lowerdir = format!("lowerdir={}", lower.display());
    for (target, options, says) in [
        (
            &dir.join("none"),
            lowerdir.clone(),
            "the target is no directory to mount on: No such file",
        ),
        (
            &file,
            lowerdir.clone(),
            "the target is no directory to mount on: not a directory",
        ),
        (
            &merged,
            format!("lowerdir={}/none", dir.path().display()),
            "none cannot be used: No such file",
        ),
        (
            &merged,
            format!("{lowerdir},upperdir=/u"),
            "have an upperdir and no workdir",
        ),
        (
            &merged,
            format!("{lowerdir},remount"),
            "option remount is for a mount that exists already",
        ),
        (&merged, EXTRA.to_owned(), "have no lowerdir"),
    ] {
        let (code, _, err) = run(target, &options);
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(says), "{err}");
    }
}

#[test]
fn a_wrong_command_line_is_not_quoted() {
    let dir = Dir::new();
    let helper = dir.join("nydus-overlayfs-abc");
    symlink(env!("CARGO_BIN_EXE_nydusbox"), &helper).unwrap();
    let run = |args: &[&str]| told(&Command::new(&helper).args(args).output().unwrap());
    for args in [
        &["overlay", "/mnt"][..],
        &["overlay", "/mnt", "extraoption=PLANTED"],
        &["ext4", "/mnt", "-o", "PLANTED"],
        &["overlay", "/mnt", "--PLANTED"],
        &[],
    ] {
        let (code, out, err) = run(args);
        assert_eq!(
            (code, out.as_str(), err.contains("PLANTED")),
            (1, "", false),
            "{args:?}: {err}"
        );
        assert!(
            err.contains("hint: usage: nydus-overlayfs overlay TARGET -o OPTIONS"),
            "{err}"
        );
    }
    // As a subcommand it has that one's code.
    for args in [
        &["overlay", "/mnt", "extraoption=PLANTED"][..],
        &["ext4", "/mnt", "-o", "PLANTED"],
    ] {
        let (code, _, err) = told(&nydusbox().arg("overlayfs").args(args).output().unwrap());
        assert_eq!((code, err.contains("PLANTED")), (2, false), "{args:?}: {err}");
        let usage = "hint: usage: nydusbox overlayfs overlay TARGET -o OPTIONS";
        assert!(err.contains(usage), "{err}");
    }
    let (code, out, _) = run(&["--version"]);
    assert_eq!(
        (code, out.as_str()),
        (0, concat!("nydus-overlayfs ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}
