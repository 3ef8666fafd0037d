//! Guests that come, reboot, leave and come again; and the daemon's stop in each of its states.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::time::Duration;

use super::fixture::{Fixture, SHARE, guest, guest_with};
use crate::daemon::{DaemonProcess, Stopped};
use crate::guest::fuse::types::InitOut;
use crate::guest::fuse::wire::init;
use crate::guest::fuse::{ROOT, ops};
use crate::guest::{FuseClient, GuestConfig, Lane, SimGuest};
use crate::peers::Skip;
use crate::tree;

type Outcome = Result<(), Skip>;

/// The promise: an orderly stop takes no longer than this.
const STOP: Duration = Duration::from_millis(100);

fn works(fs: &mut FuseClient, fx: &Fixture, name: &str) {
    let content = tree::bytes(11, 300_000);
    fs.write_file(format!("{SHARE}/{name}"), &content).unwrap();
    assert!(fs::read(fx.share().join(name)).unwrap() == content);
    assert!(fs.read_file(format!("{SHARE}/{name}")).unwrap() == content);
}

pub(super) fn reboot(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let first = *fs.negotiated();
    for round in 0..5 {
        works(&mut fs, fx, &format!("round-{round}"));
        // Handles stay open across the reboot, as they do when a kernel just stops.
        let node = fs.resolve(format!("{SHARE}/round-{round}")).unwrap().nodeid;
        fs.open(node, 2).unwrap();
        assert_eq!(fs.reboot().unwrap(), first);
    }
    // The same after an orderly unmount.
    fs.destroy().unwrap();
    fs.reboot().unwrap();
    works(&mut fs, fx, "after-destroy");
    Ok(())
}

/// Firmware (edk2's VirtioFsDxe) says that it can do little, and then starts a kernel that can do all.
pub(super) fn firmware_first(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = FuseClient::new(SimGuest::connect(&daemon.vhost_socket(), GuestConfig::default()).unwrap());
    let firmware = || ops::init(31, init::DO_READDIRPLUS);
    assert_eq!(fs.init_with(firmware()).unwrap().flags, init::DO_READDIRPLUS);
    let all = init::ASYNC_READ
        | init::ATOMIC_O_TRUNC
        | init::AUTO_INVAL_DATA
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::SUBMOUNTS
        | init::HANDLE_KILLPRIV_V2
        | init::INIT_EXT;
    let has_all = |agreed: InitOut| {
        assert_eq!(agreed.flags & all, all, "{agreed:?}");
        assert_eq!(agreed.max_write, 1 << 20);
    };
    // The same connection, after an orderly end, and another VMM's.
    has_all(fs.reboot().unwrap());
    fs.init_with(firmware()).unwrap();
    fs.destroy().unwrap();
    has_all(fs.reboot().unwrap());
    fs.init_with(firmware()).unwrap();
    let mut fs = fs.reconnect().unwrap();
    has_all(*fs.negotiated());
    works(&mut fs, fx, "file");
    Ok(())
}

pub(super) fn reboot_in_flight(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("big"), tree::bytes(1, 8 << 20)).unwrap();
    let mut fs = guest(&daemon);
    for _round in 0..20 {
        let node = fs.resolve(format!("{SHARE}/big")).unwrap().nodeid;
        let fh = fs.open(node, 0).unwrap().fh;
        let reads: Vec<_> = (0..32)
            .map(|i| ops::read(node, fh, (i % 8) << 20, 1 << 20))
            .collect();
        fs.guest().submit_batch(&reads).unwrap();
        fs.reboot().unwrap();
        // A completion of before the reboot in the new rings would be an error of the transport here.
        assert_eq!(fs.guest().outstanding(), 0);
        fs.getattr(ROOT).unwrap();
    }
    works(&mut fs, fx, "afterwards");
    Ok(())
}

pub(super) fn reconnect(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let mut fds = Vec::new();
    for round in 0..30 {
        works(&mut fs, fx, "file");
        let node = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
        fs.open(node, 0).unwrap();
        fs = fs.reconnect().unwrap();
        if round >= 5 {
            fds.push(daemon.open_fds().unwrap());
        }
    }
    works(&mut fs, fx, "last");
    // The last connection may still be on its way out when the next is counted, hence the small room.
    let (low, high) = (fds.iter().min().unwrap(), fds.iter().max().unwrap());
    assert!(high - low <= 8, "descriptors grow with each guest: {fds:?}");
    Ok(())
}

pub(super) fn several_queues(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&["--request-queues", "4"]);
    let body = crate::image::passthrough_body(&fx.share());
    super::fixture::done(&daemon.mount(SHARE, &body).unwrap());
    let content = tree::bytes(2, 16 << 20);
    fs::write(fx.share().join("big"), &content).unwrap();
    let mut fs = guest_with(
        &daemon,
        GuestConfig {
            request_queues: 4,
            ..GuestConfig::default()
        },
    );
    let node = fs.resolve(format!("{SHARE}/big")).unwrap().nodeid;
    let fh = fs.open(node, 0).unwrap().fh;
    let reads: Vec<_> = (0..64_u16)
        .map(|i| ops::read(node, fh, u64::from(i) * 262_144, 262_144).on(Lane::Request(i % 4)))
        .collect();
    for (i, ticket) in fs.guest().submit_batch(&reads).unwrap().into_iter().enumerate() {
        let from = i * 262_144;
        assert!(
            fs.wait(ticket).unwrap() == content[from..from + 262_144],
            "read {i}"
        );
    }
    for n in 0..4 {
        assert!(fs.guest().kicks(Lane::Request(n)) > 0);
    }
    Ok(())
}

pub(super) fn plain_rings(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let config = GuestConfig {
        event_idx: false,
        indirect: false,
        memory_slots: false,
        queue_size: 64,
        segment: 65_536,
        ..GuestConfig::default()
    };
    let mut fs = guest_with(&daemon, config);
    // Far more requests than descriptors and than 2^16: every index wraps.
    let share = fs.resolve(SHARE).unwrap().nodeid;
    for _batch in 0..70 {
        let batch: Vec<_> = (0..1000).map(|_| ops::getattr(share, None)).collect();
        for ticket in fs.guest().submit_batch(&batch).unwrap() {
            fs.wait(ticket).unwrap();
        }
    }
    works(&mut fs, fx, "file");
    Ok(())
}

#[track_caller]
fn stopped_well(fx: &Fixture, stopped: &Stopped) {
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(stopped.took < STOP, "{stopped:?}");
    for socket in ["vhost.sock", "api.sock"] {
        assert!(!fx.path(socket).exists(), "{socket} is left");
    }
}

fn stop(fx: &Fixture, daemon: DaemonProcess) {
    let stopped = daemon
        .stop(Duration::from_secs(10))
        .unwrap_or_else(|e| panic!("{e}"));
    stopped_well(fx, &stopped);
}

pub(super) fn stop_never_connected(fx: &Fixture) -> Outcome {
    stop(fx, fx.sharing_daemon());
    Ok(())
}

pub(super) fn stop_connected(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    works(&mut fs, fx, "file");
    stop(fx, daemon);
    assert!(fs.getattr(ROOT).is_err());
    Ok(())
}

pub(super) fn stop_after_it_left(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    works(&mut fs, fx, "file");
    drop(fs);
    stop(fx, daemon);
    Ok(())
}

pub(super) fn stop_by_api(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    works(&mut fs, fx, "file");
    let stopped = daemon
        .stop_by_api(Duration::from_secs(10))
        .unwrap_or_else(|e| panic!("{e}"));
    stopped_well(fx, &stopped);
    Ok(())
}
