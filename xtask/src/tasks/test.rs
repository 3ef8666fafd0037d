//! The gate: what has to pass before anything is merged, and nothing else does.
//!
//! What is quick comes first. The test runner comes last, so that its summary is the last thing to be seen.

use std::env;
use std::ffi::OsString;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::rootfs;
use crate::tasks::{check_deps, guest, peers};
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace, full: bool) -> Result<(), TaskError> {
    let cargo = || Cmd::cargo().dir(workspace.root());
    cargo().words("fmt --all --check").shown()?;
    check_deps::run(workspace)?;
    debian::ensure(&[debian::BUILD, debian::VM, debian::ROOTFS, debian::TESTS])?;
    cargo()
        .words("clippy --workspace --all-targets --locked -- --deny warnings")
        .shown()?;
    // The only package with features; its other configuration is not tested, but stays one that compiles.
    cargo()
        .words("clippy --workspace --no-default-features --locked -- --deny warnings")
        .shown()?;
    // The command has no documentation but its own help, and shares its name with the library.
    cargo()
        .words("doc --workspace --exclude nydusbox-cli --no-deps --locked")
        .env("RUSTDOCFLAGS", "--deny warnings")
        .shown()?;

    let peers = peers::ensure(workspace)?;
    let guest = guest::ensure(workspace)?;
    let rootfs = rootfs::ensure_tree(workspace)?;
    let path = nextest(workspace)?;
    cargo().words("build --workspace --locked").shown()?;
    let tests = |words| {
        cargo()
            .words(words)
            .env("PATH", &path)
            .env("NYDUSBOX_REQUIRE_PEERS", "1")
            .env("NYDUSBOX_PEERS", &peers)
            .env("NYDUSBOX_GUEST_ROOT", &guest)
            .env("NYDUSBOX_TEST_ROOTFS", &rootfs)
            .env("NYDUSBOX_TEST_FULL", if full { "1" } else { "0" })
            .shown()
    };
    tests("test --doc --workspace --locked")?;
    tests("nextest run --workspace --locked --profile ci")
}

/// The search path with which `cargo nextest` works; it is installed below `target/tools` if it doesn't yet.
fn nextest(workspace: &Workspace) -> Result<OsString, TaskError> {
    let path = env::var_os("PATH").unwrap_or_default();
    if Cmd::cargo().words("nextest --version").succeeds() {
        return Ok(path);
    }
    let tools = workspace.tools();
    let dirs = std::iter::once(tools.join("bin")).chain(env::split_paths(&path));
    let with_tools = env::join_paths(dirs).unwrap_or(path);
    if !Cmd::cargo()
        .words("nextest --version")
        .env("PATH", &with_tools)
        .succeeds()
    {
        eprintln!("xtask: installing cargo-nextest below target/tools (once)");
        Cmd::cargo()
            .words("install cargo-nextest --locked --root")
            .arg(&tools)
            .shown()?;
    }
    Ok(with_tools)
}
