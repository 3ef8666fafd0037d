//! Backends that keep the daemon waiting. All by order of completion, none by time.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::time::Duration;

use super::fixture::{Fixture, SHARE, done, guest};
use crate::blob_server::BlobServer;
use crate::daemon::DaemonProcess;
use crate::guest::fuse::ops;
use crate::guest::{FuseClient, Ticket};
use crate::image::{self, RafsVersion, mount_body};
use crate::peers::Skip;
use crate::tree;

type Outcome = Result<(), Skip>;

pub(super) const HELD: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Held {
    pub(super) server: BlobServer,
    pub(super) daemon: DaemonProcess,
    pub(super) fs: FuseClient,
    pub(super) tickets: Vec<Ticket>,
}

/// A daemon with eight cold READs that stand at the blob server.
pub(super) fn hold_reads(fx: &Fixture) -> Result<Held, Skip> {
    let source = fx.data_source(HELD as u64 + 1, 3 << 20);
    let image = fx.image(&source, RafsVersion::V6)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("file"), "content").unwrap();
    let config = image::rafs_config_http_proxy(&server.address(), &fx.path("cache"));
    done(
        &daemon
            .mount("/image", &mount_body("rafs", &image.bootstrap, &config))
            .unwrap(),
    );
    let mut fs = guest(&daemon);
    // One file is warm, and with it the blob's metadata.
    assert_eq!(
        fs.read_file(format!("/image/file-{HELD}")).unwrap(),
        tree::bytes(HELD as u64 + 1, 3 << 20)
    );
    let nodes: Vec<u64> = (0..HELD)
        .map(|i| fs.resolve(format!("/image/file-{i}")).unwrap().nodeid)
        .collect();
    server.hold();
    let tickets = nodes
        .iter()
        .map(|node| fs.submit(ops::read(*node, 0, 0, 65_536)).unwrap())
        .collect();
    assert!(
        server.await_held(HELD, PATIENCE),
        "not all reads reach the backend at once\n{}",
        daemon.output()
    );
    Ok(Held {
        server,
        daemon,
        fs,
        tickets,
    })
}

pub(super) fn held_reads_delay_nothing(fx: &Fixture) -> Outcome {
    let Held {
        server,
        daemon,
        mut fs,
        tickets,
    } = hold_reads(fx)?;
    let cold = fs.resolve("/image/file-0").unwrap().nodeid;
    fs.getattr(cold).unwrap();
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    assert_eq!(
        fs.read_file(format!("/image/file-{HELD}")).unwrap().len(),
        3 << 20
    );
    assert_eq!(daemon.api("GET", "/api/v1/daemon", None).unwrap().status, 200);
    assert_eq!(
        fs.guest().outstanding(),
        HELD,
        "all of that while the reads were held"
    );
    server.release();
    for (i, ticket) in tickets.into_iter().enumerate() {
        assert!(
            fs.wait(ticket).unwrap() == tree::bytes(i as u64 + 1, 3 << 20)[..65_536],
            "read {i}"
        );
    }
    Ok(())
}

pub(super) fn stops_while_reads_are_held(fx: &Fixture) -> Outcome {
    let Held {
        server, daemon, fs, ..
    } = hold_reads(fx)?;
    let stopped = daemon
        .stop(Duration::from_secs(10))
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(stopped.took < Duration::from_millis(100), "{stopped:?}");
    for socket in ["vhost.sock", "api.sock"] {
        assert!(!fx.path(socket).exists(), "{socket} is left");
    }
    drop((server, fs));
    Ok(())
}

pub(super) fn api_answers_while_a_mount_waits(fx: &Fixture) -> Outcome {
    let source = fx.data_source(2, 1 << 20);
    let image = fx.image(&source, RafsVersion::V6)?;
    let server = BlobServer::start(&image.blobs).unwrap();
    let daemon = fx.sharing_daemon();
    let config = image::rafs_config_http_proxy(&server.address(), &fx.path("cache"));
    let body = mount_body("rafs", &image.bootstrap, &config);
    server.hold();
    std::thread::scope(|scope| {
        let mount = scope.spawn(|| daemon.mount("/image", &body).unwrap());
        // The mount asks for the blob's metadata, whether or not it waits for it.
        assert!(server.await_held(1, PATIENCE), "the mount asks for nothing");
        assert_eq!(daemon.api("GET", "/api/v1/daemon", None).unwrap().status, 200);
        done(
            &daemon
                .mount("/other", &image::passthrough_body(&fx.share()))
                .unwrap(),
        );
        server.release();
        done(&mount.join().unwrap());
    });
    assert_eq!(guest(&daemon).read_file("/image/file-0").unwrap().len(), 1 << 20);
    Ok(())
}
