//! Guests and frontends that mean harm, or are broken. After each the daemon serves on.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::time::Duration;

use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, done, guest};
use crate::daemon::DaemonProcess;
use crate::guest::fuse::wire::op;
use crate::guest::fuse::{ROOT, ops};
use crate::guest::raw::{self, Hostile, errno_of, garbage_session};
use crate::guest::request::Request;
use crate::guest::{FuseClient, GuestConfig, Lane, SimGuest};
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

/// A good request after a bad one: on a single queue its completion shows that the bad one was taken too.
#[track_caller]
fn still_serves(fs: &mut FuseClient, daemon: &DaemonProcess, after: &str) {
    if let Err(error) = fs.getattr(ROOT) {
        panic!("a GETATTR after {after}: {error:?}\n{}", daemon.output());
    }
    assert!(daemon.is_alive(), "the daemon died of {after}");
}

fn send_all(fx: &Fixture, lane: Lane, config: GuestConfig) {
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("file"), "content").unwrap();
    let mut fs = FuseClient::mount(&daemon.vhost_socket(), config).unwrap();
    for hostile in Hostile::ALL {
        let name = format!("{hostile:?} on {lane:?}");
        fs.guest().send_hostile(lane, *hostile).unwrap();
        still_serves(&mut fs, &daemon, &name);
    }
    // All of them again at once, and then real work.
    for hostile in Hostile::ALL {
        fs.guest().send_hostile(lane, *hostile).unwrap();
    }
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    // The same guest, rebooted, is as good as new.
    fs.reboot().unwrap();
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"content");
}

pub(super) fn chains(fx: &Fixture) -> Outcome {
    send_all(fx, Lane::Request(0), GuestConfig::default());
    Ok(())
}

pub(super) fn hiprio_chains(fx: &Fixture) -> Outcome {
    send_all(
        fx,
        Lane::Hiprio,
        GuestConfig {
            event_idx: false,
            ..GuestConfig::default()
        },
    );
    Ok(())
}

pub(super) fn index_jump(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    for by in [1025, 20_000, 65_000] {
        fs.guest().jump_avail_index(Lane::Request(0), by).unwrap();
        // A daemon may take such a queue for broken until the driver resets it, but not more than that.
        fs.reboot().unwrap();
        still_serves(&mut fs, &daemon, "a jump of the available index");
    }
    Ok(())
}

pub(super) fn errnos(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    for hostile in Hostile::ALL.iter().filter(|h| h.deserves_an_errno()) {
        let ticket = fs.guest().send_hostile(Lane::Request(0), *hostile).unwrap();
        let reply = fs
            .guest()
            .wait(ticket)
            .unwrap_or_else(|e| panic!("{hostile:?}: {e:?}"));
        let errno = errno_of(&reply).unwrap_or_else(|| panic!("{hostile:?} was answered {:?}", reply.body));
        assert!(errno > 0 && errno < 4096, "{hostile:?}: {errno}");
        if matches!(hostile, Hostile::UnknownOpcode(_)) {
            assert_eq!(Errno::from_raw_os_error(errno), Errno::NOSYS, "{hostile:?}");
        }
    }
    still_serves(&mut fs, &daemon, "all of them");
    Ok(())
}

/// Handles that are released, released twice, or of another file; lookups given back too often.
pub(super) fn stale_handles(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    fs.write_file(format!("{SHARE}/one"), b"one").unwrap();
    fs.write_file(format!("{SHARE}/two"), b"two").unwrap();
    let one = fs.resolve(format!("{SHARE}/one")).unwrap().nodeid;
    let two = fs.resolve(format!("{SHARE}/two")).unwrap().nodeid;
    let (first, second) = (fs.open(one, 2).unwrap(), fs.open(two, 2).unwrap());
    fs.release(one, first).unwrap();
    for result in [
        fs.read(one, first.fh, 0, 10).map(drop),
        fs.write(one, first.fh, 0, b"x").map(drop),
        fs.read(one, second.fh, 0, 10).map(drop),
    ] {
        assert_eq!(result.unwrap_err().errno(), Some(Errno::BADF));
    }
    let _twice = fs.release(one, first);
    assert_eq!(fs.read(two, second.fh, 0, 4096).unwrap(), b"two");
    fs.forget(two, u64::MAX).unwrap();
    fs.forget(ROOT, u64::MAX).unwrap();
    still_serves(&mut fs, &daemon, "a FORGET of everything");
    assert!(fs.resolve(format!("{SHARE}/two")).is_ok());
    Ok(())
}

/// A daemon that allocates what the guest names could be made to use up the host's memory with a few requests.
pub(super) fn huge_answers(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    for mut request in [ops::getxattr(share, b"user.none", 16), ops::listxattr(share, 16)] {
        // The first field of the argument is the room for the answer; the buffer behind it stays small.
        request.args[0][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let ticket = fs.submit(request).unwrap();
        assert_eq!(fs.wait(ticket).unwrap_err().errno(), Some(Errno::TOOBIG));
    }
    still_serves(&mut fs, &daemon, "requests for 4 GiB");
    let before = daemon.peak_memory().unwrap();
    for hostile in [Hostile::IoctlHuge, Hostile::ReadableMuch] {
        let ticket = fs.guest().send_hostile(Lane::Request(0), hostile).unwrap();
        let reply = fs.guest().wait(ticket).unwrap();
        assert!(errno_of(&reply).is_some(), "{hostile:?}: {:?}", reply.body);
    }
    let ioctl = fs.submit(Request::new(op::IOCTL, share).arg([0; 32])).unwrap();
    assert_eq!(fs.wait(ioctl).unwrap_err().errno(), Some(Errno::NOTTY));
    // The guest's own memory counts, as far as it was looked at.
    let more = daemon.peak_memory().unwrap() - before;
    assert!(more < 128 << 20, "{more} bytes for a request");
    Ok(())
}

/// The FUSE library quotes names that have no end, five characters a byte, and has a line for each FORGET of what is not
/// mounted.
pub(super) fn little_log(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let before = daemon.output().len();
    for (opcode, fixed) in [
        (op::LOOKUP, 0),
        (op::UNLINK, 0),
        (op::RMDIR, 0),
        (op::MKDIR, 8),
        (op::LINK, 8),
        (op::MKNOD, 16),
        (op::CREATE, 16),
        (op::GETXATTR, 8),
        (op::REMOVEXATTR, 0),
    ] {
        let request = Request::new(opcode, share)
            .arg(vec![0; fixed])
            .arg([b'n'; 10_000]);
        let ticket = fs.submit(request).unwrap();
        assert_eq!(
            fs.wait(ticket).unwrap_err().errno(),
            Some(Errno::INVAL),
            "{opcode}"
        );
    }
    for n in 0..100 {
        fs.forget(7 << 56 | n, 1).unwrap();
        fs.init().unwrap();
    }
    still_serves(&mut fs, &daemon, "names without end");
    let log = daemon.output().len() - before;
    assert!(log < 10_000, "{log} bytes of log");
    Ok(())
}

/// READ and WRITE carry open flags, which the FUSE library applies to the open file with fcntl. Where
/// that is refused (O_DIRECT on procfs) fuse-backend-rs 0.14 closes a descriptor it only borrowed: the
/// next open gets its number, and the handle then leads to another file.
pub(super) fn borrowed_descriptors(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let proc = std::path::Path::new("/proc/sys/kernel");
    done(
        &daemon
            .mount("/proc", &crate::image::passthrough_body(proc))
            .unwrap(),
    );
    fs::write(fx.share().join("file"), "content").unwrap();
    let mut fs = guest(&daemon);
    let ostype = fs.resolve("/proc/ostype").unwrap().nodeid;
    let file = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
    let (on_proc, on_disk) = (fs.open(ostype, 0).unwrap(), fs.open(file, 2).unwrap());
    let before = daemon.open_fds().unwrap();
    let (direct, no_atime, asynchronous) = (0o40_000_u32, 0o1_000_000, 0o20_000);
    for flags in [direct, no_atime, asynchronous, direct | 2, u32::MAX] {
        for mut request in [
            ops::read(ostype, on_proc.fh, 0, 4096),
            ops::write(ostype, on_proc.fh, 0, b"x"),
            ops::read(file, on_disk.fh, 0, 4096),
            ops::write(file, on_disk.fh, 0, b"content"),
        ] {
            request.args[0][32..36].copy_from_slice(&flags.to_le_bytes());
            let ticket = fs.submit(request).unwrap();
            // What it answers is its own affair; what it closes is not.
            let _answer = fs.wait(ticket);
            assert_eq!(daemon.open_fds().unwrap(), before, "after flags {flags:#o}");
        }
    }
    assert_eq!(fs.read(ostype, on_proc.fh, 0, 4096).unwrap(), b"Linux\n");
    // Where O_APPEND is taken at its word, one of the writes went to the end.
    assert!(
        fs.read(file, on_disk.fh, 0, 4096)
            .unwrap()
            .starts_with(b"content")
    );
    Ok(())
}

pub(super) fn garbage(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("file"), "content").unwrap();
    for (name, bytes) in raw::garbage() {
        let closed = garbage_session(&daemon.vhost_socket(), &bytes, Duration::from_secs(10)).unwrap();
        assert!(closed, "{name}: the daemon keeps the connection");
        let mut fs = guest(&daemon);
        assert_eq!(
            fs.read_file(format!("{SHARE}/file")).unwrap(),
            b"content",
            "after {name}"
        );
        // And in the middle of a session that works.
        fs.guest().send_garbage(&bytes).unwrap();
        drop(fs);
        assert_eq!(
            guest(&daemon).read_file(format!("{SHARE}/file")).unwrap(),
            b"content",
            "amid {name}"
        );
        assert!(daemon.is_alive(), "the daemon died of {name}");
    }
    Ok(())
}

pub(super) fn break_off(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("big"), vec![9; 4 << 20]).unwrap();
    // A guest that set its rings up and never sent INIT.
    drop(SimGuest::connect(&daemon.vhost_socket(), GuestConfig::default()).unwrap());
    for _round in 0..10 {
        let mut fs = guest(&daemon);
        let node = fs.resolve(format!("{SHARE}/big")).unwrap().nodeid;
        let fh = fs.open(node, 0).unwrap().fh;
        let reads: Vec<_> = (0..64)
            .map(|i| ops::read(node, fh, (i % 4) << 20, 1 << 20))
            .collect();
        fs.guest().submit_batch(&reads).unwrap();
        // It goes with all of them in flight: its memory must not be touched after it was unmapped.
    }
    assert_eq!(
        guest(&daemon).read_file(format!("{SHARE}/big")).unwrap().len(),
        4 << 20
    );
    assert!(daemon.is_alive());
    Ok(())
}
