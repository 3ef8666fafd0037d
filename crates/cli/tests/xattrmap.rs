//! Extended attributes under other names: what a guest sees and what the host keeps is what the genuine virtiofsd
//! makes of the same rules.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use nydusbox_testkit::daemon::{DaemonProcess, Program};
use nydusbox_testkit::guest::fuse::ROOT;
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::peers::{Peer, require};
use nydusbox_testkit::virtiofsd::Virtiofsd;

/// The examples of virtiofsd's documentation, and a rule of each other type.
const RULES: &[&str] = &[
    ":prefix:all::user.virtiofs.::bad:all:::",
    "/prefix/all/trusted./user.virtiofs./ /bad/server//trusted./ /bad/client/user.virtiofs.// /ok/all///",
    ":map::user.vm.:",
    "|map|trusted.|user.vm.|",
    ":unsupported:client:trusted.:: :unsupported:server::user.hidden: :ok:all:::",
];
const NAMES: &[&str] = &[
    "user.a",
    "user.hidden.b",
    "trusted.c",
    "user.virtiofs.trusted.d",
    "user.vm.e",
    "system.posix_acl_access",
];

/// Everything a guest can do with extended attributes, and what came of it.
fn talk(socket: &Path, share: &Path) -> Vec<String> {
    let file = share.join("file");
    fs::write(&file, "").unwrap();
    // Two that the host has of its own.
    for name in ["user.hidden.host", "trusted.host"] {
        rustix::fs::setxattr(&file, name, b"host", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let mut said = Vec::new();
    let mut fs = FuseClient::mount(socket, GuestConfig::default()).unwrap();
    let node = fs.lookup(ROOT, b"file").unwrap().nodeid;
    for name in NAMES {
        let set = fs.setxattr(node, name.as_bytes(), b"guest", 0);
        said.push(format!("set {name}: {:?}", set.map_err(|e| e.errno())));
    }
    for name in NAMES.iter().chain(&["user.hidden.host", "trusted.host"]) {
        let got = fs.getxattr(node, name.as_bytes());
        said.push(format!("get {name}: {:?}", got.map_err(|e| e.errno())));
    }
    let mut listed = fs.listxattr(node).unwrap();
    listed.sort();
    said.extend(
        listed
            .iter()
            .map(|name| format!("lists {}", String::from_utf8_lossy(name))),
    );
    let mut raw = vec![0; 4096];
    let len = rustix::fs::listxattr(&file, &mut raw[..]).unwrap();
    let mut kept: Vec<String> = raw[..len]
        .split(|byte| *byte == 0)
        .map(|name| format!("host has {}", String::from_utf8_lossy(name)))
        .collect();
    kept.sort();
    said.extend(kept);
    for name in NAMES {
        let removed = fs.removexattr(node, name.as_bytes());
        said.push(format!("remove {name}: {:?}", removed.map_err(|e| e.errno())));
    }
    said
}

fn ours(dir: &Path, rules: &str) -> Vec<String> {
    let share = dir.join("share");
    fs::create_dir(&share).unwrap();
    let program = Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")));
    let args = ["--shared-dir", share.to_str().unwrap(), "--xattrmap", rules];
    let daemon = DaemonProcess::spawn(&program, dir, &args).unwrap_or_else(|e| panic!("{e}"));
    talk(&daemon.vhost_socket(), &share)
}

#[test]
fn names_are_mapped_as_virtiofsd_maps_them() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: trusted attributes need root");
        return;
    }
    let Ok(virtiofsd) = require(Peer::Virtiofsd) else {
        return;
    };
    for rules in RULES {
        let dir = tempfile::tempdir().unwrap();
        let own = ours(dir.path(), rules);
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        // Without that capability, which it gives up by itself, the kernel lists no trusted attributes to it.
        let args = ["--modcaps", "+sys_admin", "--xattrmap", rules];
        let peer = Virtiofsd::spawn(&virtiofsd, dir.path(), &share, &args).unwrap();
        assert_eq!(own, talk(peer.socket(), &share), "{rules}");
    }
}
