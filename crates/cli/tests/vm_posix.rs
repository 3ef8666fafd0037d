//! What POSIX asks of file systems, asked in a real machine of our share and of the overlay on it.
//!
//! The yardstick is virtiofsd in the same machine: what fails on ours and not on it is a defect. With
//! `NYDUSBOX_TEST_FULL=1` both are run; otherwise ours alone, whose failures are known to be none.

use std::path::Path;

use nydusbox_testkit::machine::posix::{self, Place};
use nydusbox_testkit::machine::virtiofsd::{Host, Server};

fn host(server: Server<'_>) -> Option<Host> {
    let host = Host::served_by(server)?;
    posix::install(&host)?;
    Some(host)
}

fn ours() -> Option<Host> {
    host(Server::Nydusbox(Path::new(env!("CARGO_BIN_EXE_nydusbox"))))
}

/// overlayfs keeps what it must remember of the upper directory in trusted.* attributes.
fn virtiofsd() -> Option<Host> {
    host(Server::Virtiofsd(&["--modcaps=+sys_admin", "--killpriv-v2"]))
}

#[tokio::test]
async fn share_fails_no_test_of_pjdfstest() {
    let Some(ours) = ours() else { return };
    let verdict = posix::pjdfstest(&ours, Place::Share, &[]).await;
    assert!(verdict.failed.is_empty(), "{}", verdict.output);
    assert!(verdict.passed > 350, "{}", verdict.output);
}

#[tokio::test]
async fn share_keeps_a_file_that_fsx_exercises() {
    let Some(ours) = ours() else { return };
    posix::fsx(&ours, Place::Share, 1, if posix::full() { 50_000 } else { 2_000 }).await;
}

#[tokio::test]
async fn overlay_keeps_a_file_that_fsx_exercises() {
    let Some(ours) = ours() else { return };
    posix::fsx(
        &ours,
        Place::Overlay,
        2,
        if posix::full() { 50_000 } else { 2_000 },
    )
    .await;
}

#[tokio::test]
async fn nothing_fails_that_does_not_fail_on_virtiofsd() {
    if !posix::full() {
        eprintln!("skipped: boots four machines; `cargo xtask test --full` runs it");
        return;
    }
    for place in [Place::Share, Place::Overlay] {
        // virtiofsd serves one machine and ends.
        let (Some(ours), Some(virtiofsd)) = (ours(), virtiofsd()) else {
            return;
        };
        let (mine, theirs) = (
            posix::pjdfstest(&ours, place, &[]).await,
            posix::pjdfstest(&virtiofsd, place, &[]).await,
        );
        eprintln!("{place:?}: ours fails {:?}", mine.failed);
        eprintln!("{place:?}: virtiofsd fails {:?}", theirs.failed);
        let only_ours: Vec<_> = mine.failed.difference(&theirs.failed).collect();
        assert!(only_ours.is_empty(), "{place:?}: {only_ours:?}\n{}", mine.output);
    }
}
