//! What a user gets wrong: one sentence saying what and where, a documented exit code, nothing left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};

use common::{Daemon, Dir, nydusbox, told};

/// Runs a command that must fail and checks the form of what it says.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = nydusbox().args(args).output().unwrap();
    let (got, out, err) = told(&output);
    assert_eq!(got, code, "{args:?}: {out} {err}");
    for word in words {
        assert!(err.contains(word), "{args:?} does not say {word:?}: {err}");
    }
    let sentences = err.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(sentences, 1, "{args:?} says: {err}");
}

#[test]
fn virtiofs_refuses_with_a_sentence_and_leaves_nothing() {
    let dir = Dir::new();
    let file = dir.join("file");
    std::fs::write(&file, "not an image, not JSON").unwrap();
    let (file, sock) = (file.to_str().unwrap(), dir.join("s"));
    let sock = sock.to_str().unwrap();
    let long = format!("/tmp/{}", "x".repeat(110));
    let before = dir.names();
    refused(&["virtiofs", "--sock", &long], 2, &["115 bytes", "107"]);
    refused(&["virtiofs"], 2, &["--sock"]);
    refused(&["virtiofs", "--sock", sock, "--log-level", "loud"], 2, &["loud"]);
    refused(
        &["virtiofs", "--sock", sock, "--shared-dir", "/no/such/dir"],
        1,
        &["/no/such/dir", "No such file"],
    );
    refused(
        &["virtiofs", "--sock", sock, "--shared-dir", file],
        1,
        &[file, "Not a directory"],
    );
    refused(
        &["virtiofs", "--sock", sock, "--bootstrap", file],
        1,
        &["--config or --localfs-dir"],
    );
    refused(
        &[
            "virtiofs",
            "--sock",
            sock,
            "--bootstrap",
            file,
            "--localfs-dir",
            "/tmp",
        ],
        1,
        &["not a RAFS bootstrap"],
    );
    refused(
        &["virtiofs", "--sock", sock, "--bootstrap", file, "--config", file],
        1,
        &["neither JSON"],
    );
    refused(
        &[
            "virtiofs",
            "--sock",
            sock,
            "--bootstrap",
            file,
            "--config",
            "/none",
        ],
        1,
        &["/none"],
    );
    refused(&["virtiofs", "--sock", file], 1, &[file, "not a socket"]);
    refused(&["virtiofs", "--sock", "/no/such/dir/s"], 1, &["/no/such/dir/s"]);
    refused(&["virtiofs", "--sock-fd", "77"], 1, &["descriptor 77"]);
    refused(
        &[
            "virtiofs",
            "--sock",
            sock,
            "--shared-dir",
            "/",
            "--bootstrap",
            file,
        ],
        2,
        &["cannot be used with"],
    );
    assert_eq!(dir.names(), before);
}

#[test]
fn a_live_daemons_sockets_are_not_taken_over() {
    let daemon = Daemon::start(&[]);
    let (vhost, api) = (daemon.dir.join("v.sock"), daemon.api());
    let other = Dir::new();
    refused(
        &["virtiofs", "--sock", vhost.to_str().unwrap()],
        1,
        &["in use", "v.sock"],
    );
    let free = other.join("s");
    refused(
        &[
            "virtiofs",
            "--sock",
            free.to_str().unwrap(),
            "--apisock",
            api.to_str().unwrap(),
        ],
        1,
        &["in use", "a.sock"],
    );
    assert_eq!(other.names(), Vec::<String>::new());
    assert_eq!(daemon.request("GET", "/api/v2/daemon", "").0, 200);
}

#[test]
fn sockets_of_a_killed_daemon_are_replaced() {
    let mut first = Daemon::start(&[]);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(first.dir.join("v.sock").exists());
    let mut second = nydusbox()
        .args(["virtiofs", "--sock"])
        .arg(first.dir.join("v.sock"))
        .arg("--apisock")
        .arg(first.api())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::os::unix::net::UnixStream::connect(first.api()).is_err() {
        assert!(std::time::Instant::now() < deadline && second.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    assert_eq!(first.request("PUT", "/api/v1/daemon/exit", "").0, 204);
    assert!(second.wait().unwrap().success());
    assert_eq!(first.dir.names(), ["log"]);
}

#[test]
fn image_build_refuses_with_a_sentence_and_leaves_nothing() {
    let dir = Dir::new();
    let source = dir.mkdir("source");
    let text = dir.join("text");
    std::fs::write(&text, "no archive").unwrap();
    let out = dir.join("out");
    let (source, text, out) = (
        source.to_str().unwrap(),
        text.to_str().unwrap(),
        out.to_str().unwrap(),
    );
    let before = dir.names();
    refused(
        &["image", "build", "/no/such/source", out],
        1,
        &["/no/such/source"],
    );
    refused(&["image", "build", text, out], 1, &[text]);
    refused(
        &["image", "build", source, out, "--chunk-size", "3000"],
        1,
        &["3000"],
    );
    refused(
        &["image", "build", source, out, "--chunk-size", "many"],
        2,
        &["many"],
    );
    refused(&["image", "build", source, out, "--fs-version", "7"], 2, &["7"]);
    refused(
        &["image", "build", source, "/no/such/dir/out"],
        1,
        &["/no/such/dir"],
    );
    assert_eq!(dir.names(), before);
    assert!(
        nydusbox()
            .args(["image", "build", source, out])
            .output()
            .unwrap()
            .status
            .success()
    );
    refused(&["image", "build", source, out], 1, &[out]);
}

#[test]
fn run_refuses_with_125_before_anything_is_started() {
    let Some((guest, _)) = nydusbox_testkit::machine::prerequisites::guest() else {
        return;
    };
    let guest = guest.into_os_string().into_string().unwrap();
    let dir = Dir::new();
    let source = dir.mkdir("source");
    let (source, image) = (source.to_str().unwrap(), dir.join("image"));
    let image = image.to_str().unwrap();
    let empty = dir.mkdir("empty");
    let empty = empty.to_str().unwrap();
    let data = dir.join("data");
    let data = data.to_str().unwrap();
    refused(
        &["run", "/no/such/image", "--guest-root", &guest, "--", "true"],
        125,
        &["/no/such/image", "image build"],
    );
    refused(
        &["run", empty, "--guest-root", &guest, "--", "true"],
        125,
        &[empty],
    );
    refused(&["run"], 2, &["IMAGE"]);
    refused(&["run", "docker:x"], 2, &["docker:x"]);
    refused(&["run", image, "--user", "a:b:c"], 2, &["a:b:c", "USER[:GROUP]"]);
    assert!(
        nydusbox()
            .args(["image", "build", source, image])
            .output()
            .unwrap()
            .status
            .success()
    );
    refused(
        &[
            "run",
            image,
            "--guest-root",
            empty,
            "--data-dir",
            data,
            "--",
            "true",
        ],
        125,
        &["boots from", "doctor"],
    );
    assert!(!std::path::Path::new(data).exists());
    refused(
        &["run", image, "--guest-root", &guest, "--data-dir", data],
        125,
        &[image, "no command", "-- COMMAND"],
    );
}

#[test]
fn image_diff_tells_a_difference_from_trouble_as_diff_does() {
    let dir = Dir::new();
    let image = |name: &str, content: &str| {
        let source = dir.mkdir(&format!("{name}-source"));
        std::fs::write(source.join("file"), content).unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_nydusbox"))
            .args(["image", "build"])
            .args([&source, &dir.join(name)])
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        dir.join(name)
    };
    let (one, other) = (image("one", "1"), image("other", "2"));
    for (left, right, expected) in [(&one, &one, 0), (&one, &other, 1), (&one, &dir.join("none"), 2)] {
        let output = Command::new(env!("CARGO_BIN_EXE_nydusbox"))
            .args(["image", "diff"])
            .args([left, right])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(expected), "{output:?}");
    }
}

#[test]
fn a_reader_that_leaves_changes_no_status() {
    let dir = Dir::new();
    let (source, out) = (dir.mkdir("source"), dir.join("image"));
    let helper = dir.join("nydus-overlayfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_nydusbox"), &helper).unwrap();
    let build = || {
        let mut build = nydusbox();
        build.args(["image", "build", "--force"]).args([&source, &out]);
        build
    };
    let of = |args: &[&str]| {
        let mut command = nydusbox();
        command.args(args);
        command
    };
    let mut help = Command::new(&helper);
    help.arg("--help");
    for mut command in [build(), of(&["doctor"]), of(&["kata-config"]), help] {
        let read = told(&command.stdout(Stdio::piped()).output().unwrap());
        let (nobody, gone) = std::io::pipe().unwrap();
        drop(nobody);
        let unread = told(&command.stdout(gone).output().unwrap());
        assert_eq!((unread.0, &*unread.2), (read.0, &*read.2), "{command:?}");
    }
}
