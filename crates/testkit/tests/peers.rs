//! The simulated guest proved against the genuine daemons: what it sees there is what is on the host.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use nydusbox_testkit::daemon::{DaemonProcess, Program};
use nydusbox_testkit::guest::fuse::{ROOT, ops, types::SetAttr};
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::image::{
    RafsVersion, build, mount_body, passthrough_body, rafs_config_localfs, without_read_amplification,
};
use nydusbox_testkit::peers::{Peer, require};
use nydusbox_testkit::tree;
use nydusbox_testkit::virtiofsd::Virtiofsd;

fn share_with_virtiofsd(program: &Path, dir: &Path, share: &Path) -> Virtiofsd {
    let plain = [
        "--sandbox",
        "none",
        "--seccomp",
        "none",
        "--inode-file-handles=never",
    ];
    let pool = ["--thread-pool-size", "4"];
    Virtiofsd::spawn(program, dir, share, &[plain.as_slice(), &pool].concat()).unwrap()
}

fn configs() -> Vec<GuestConfig> {
    let base = GuestConfig::default();
    vec![
        base.clone(),
        GuestConfig {
            event_idx: false,
            ..base.clone()
        },
        GuestConfig {
            indirect: false,
            queue_size: 128,
            ..base.clone()
        },
        GuestConfig {
            indirect: false,
            event_idx: false,
            memory_slots: false,
            segment: 65536,
            ..base
        },
    ]
}

/// A share is what the host has, and what the guest writes is on the host.
fn passthrough(fs: &mut FuseClient, root: &str, share: &Path) {
    let content = tree::bytes(7, 3_000_001);
    fs::write(share.join("from-host"), &content).unwrap();
    assert!(fs.read_file(format!("{root}/from-host")).unwrap() == content);
    let dir = fs.resolve(root).unwrap().nodeid;
    fs.write_file(format!("{root}/from-guest"), &content).unwrap();
    assert!(fs::read(share.join("from-guest")).unwrap() == content);
    let made = fs.mkdir(dir, b"dir", 0o750).unwrap();
    assert!(made.attr.is_dir());
    fs.rename((dir, b"from-guest"), (made.nodeid, b"moved")).unwrap();
    let moved = fs.lookup(made.nodeid, b"moved").unwrap();
    let set = SetAttr {
        size: Some(10),
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let attr = fs.setattr(moved.nodeid, &set).unwrap();
    assert_eq!((attr.size, attr.mode), (10, 0o100_600));
    assert_eq!(fs::read(share.join("dir/moved")).unwrap(), content[..10]);
    fs.unlink(made.nodeid, b"moved").unwrap();
    fs.forget(moved.nodeid, 1).unwrap();
    fs.rmdir(dir, b"dir").unwrap();
    assert!(!share.join("dir").exists());
}

#[test]
fn nydusd_passes_a_directory_through() {
    let Ok(nydusd) = require(Peer::Nydusd) else { return };
    for config in configs() {
        eprintln!("{config:?}");
        let (dir, share) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let daemon = DaemonProcess::spawn(&Program::Nydusd(nydusd.clone()), dir.path(), &[]).unwrap();
        assert_eq!(
            daemon
                .mount("/containers", &passthrough_body(share.path()))
                .unwrap()
                .status,
            204
        );
        let mut fs = FuseClient::mount(&daemon.vhost_socket(), config).unwrap();
        passthrough(&mut fs, "/containers", share.path());
        fs.forget_all().unwrap();
    }
}

#[test]
fn nydusd_serves_every_file_of_an_image() {
    let (Ok(nydusd), Ok(nydus_image)) = (require(Peer::Nydusd), require(Peer::NydusImage)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    tree::generate(&source).unwrap();
    let expected = tree::sum(&source).unwrap();
    let daemon = DaemonProcess::spawn(&Program::Nydusd(nydusd), dir.path(), &[]).unwrap();
    let mut client = None;
    for (name, version) in [("v5", RafsVersion::V5), ("v6", RafsVersion::V6)] {
        let image = build(&nydus_image, &source, &dir.path().join(name), version).unwrap();
        let config = rafs_config_localfs(&image.blobs, &dir.path().join(format!("cache-{name}")));
        let config = without_read_amplification(&config);
        let answer = daemon
            .mount(
                &format!("/{name}"),
                &mount_body("rafs", &image.bootstrap, &config),
            )
            .unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        let fs = client.get_or_insert_with(|| {
            FuseClient::mount(&daemon.vhost_socket(), GuestConfig::default()).unwrap()
        });
        let seen = fs.checksum_tree(format!("/{name}")).unwrap();
        for (path, leaf) in &expected {
            assert_eq!(
                seen.get(path),
                Some(leaf),
                "{name}: {}",
                String::from_utf8_lossy(path)
            );
        }
        assert_eq!(seen.len(), expected.len());
    }
}

#[test]
fn virtiofsd_passes_a_directory_through() {
    let Ok(virtiofsd) = require(Peer::Virtiofsd) else {
        return;
    };
    for config in configs() {
        let (dir, share) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let daemon = share_with_virtiofsd(&virtiofsd, dir.path(), share.path());
        let mut fs = FuseClient::mount(daemon.socket(), config).unwrap();
        passthrough(&mut fs, "/", share.path());
    }
}

#[test]
fn sixty_four_reads_in_flight_each_get_their_own_data() {
    let Ok(virtiofsd) = require(Peer::Virtiofsd) else {
        return;
    };
    let (dir, share) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let content = tree::bytes(1, 64 << 20);
    fs::write(share.path().join("big"), &content).unwrap();
    let daemon = share_with_virtiofsd(&virtiofsd, dir.path(), share.path());
    let mut fs = FuseClient::mount(daemon.socket(), GuestConfig::default()).unwrap();
    let node = fs.lookup(ROOT, b"big").unwrap().nodeid;
    let fh = fs.open(node, 0).unwrap().fh;
    for size in [4096_u32, 1 << 20] {
        let requests: Vec<_> = (0..64)
            .map(|i| ops::read(node, fh, i * u64::from(size), size))
            .collect();
        let tickets = fs.guest().submit_batch(&requests).unwrap();
        assert_eq!(fs.guest().outstanding(), 64);
        for (i, ticket) in tickets.into_iter().enumerate() {
            let from = i * size as usize;
            assert!(
                fs.wait(ticket).unwrap() == content[from..from + size as usize],
                "read {i} of {size}"
            );
        }
    }
}
