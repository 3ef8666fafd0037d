//! A daemon with a guest that wants nothing: it does not run, and it takes little memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nydusbox_testkit::blob_server::BlobServer;
use nydusbox_testkit::daemon::{DaemonProcess, Program};
use nydusbox_testkit::guest::FuseClient;
use nydusbox_testkit::guest::fuse::ops;
use nydusbox_testkit::image::{self, RafsVersion, mount_body};
use nydusbox_testkit::peers::Skip;
use nydusbox_testkit::suite::fixture::{Fixture, SHARE, done, guest};
use nydusbox_testkit::suite::mapped::may_be_mapped;

/// How long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(1);
/// How long something may take that happens soon.
const PATIENCE: Duration = Duration::from_secs(30);

fn fixture() -> Fixture {
    Fixture::new(&Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox"))))
}

/// A daemon with a share and an image, and a guest that has read both.
fn used_daemon(fx: &Fixture) -> Result<(DaemonProcess, FuseClient), Skip> {
    let source = fx.data_source(4, 3 << 20);
    let image = fx.image(&source, RafsVersion::V6)?;
    fs::write(fx.share().join("file"), "content").unwrap();
    let daemon = fx.sharing_daemon();
    done(&daemon.mount("/image", &fx.local_body(&image)).unwrap());
    let mut client = guest(&daemon);
    assert_eq!(client.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    for n in 0..4 {
        assert_eq!(
            client.read_file(format!("/image/file-{n}")).unwrap().len(),
            3 << 20
        );
    }
    Ok((daemon, client))
}

/// How often each thread has been given a processor or left it, by thread.
fn switches(daemon: &DaemonProcess) -> Vec<(String, u64)> {
    let mut threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        // A thread may end meanwhile.
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("status")).ok())
        .map(|status| {
            let field = |name: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            let count = |name: &str| field(name).parse::<u64>().unwrap();
            let switches = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
            (format!("{} {}", field("Pid:"), field("Name:")), switches)
        })
        .collect();
    threads.sort();
    threads
}

/// Bytes of the executable that are mapped and resident.
fn resident_program(daemon: &DaemonProcess) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            if inside {
                kib += rss.split_whitespace().next().unwrap().parse::<u64>().unwrap();
            }
        } else if line.split(' ').next().unwrap().contains('-') {
            inside = line.contains("r-xp") && line.ends_with("/nydusbox");
        }
    }
    kib * 1024
}

#[test]
fn a_daemon_with_nothing_to_do_is_never_woken() {
    let fx = fixture();
    let Ok((daemon, _client)) = used_daemon(&fx) else {
        return;
    };
    let end = Instant::now() + PATIENCE;
    let mut before = switches(&daemon);
    loop {
        // Not to wait for something, but to see that nothing happens.
        thread::sleep(WATCHED);
        let now = switches(&daemon);
        if now == before {
            return;
        }
        assert!(
            Instant::now() < end,
            "still at it: {before:?}, a second later {now:?}"
        );
        before = now;
    }
}

/// Code that is run once, to start or to mount, does not stay: it would be megabytes for each sandbox.
#[test]
fn a_daemon_gives_back_what_starting_and_mounting_took() {
    /// What serving a few requests in a debug build takes, and room.
    const LITTLE: u64 = 2 << 20;
    let fx = fixture();
    let Ok((daemon, mut client)) = used_daemon(&fx) else {
        return;
    };
    let end = Instant::now() + PATIENCE;
    while resident_program(&daemon) > LITTLE {
        assert!(
            Instant::now() < end,
            "{} bytes are resident",
            resident_program(&daemon)
        );
        thread::sleep(Duration::from_millis(20));
    }
    // It has all it needs nevertheless.
    assert_eq!(client.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    done(
        &daemon
            .mount("/again", &image::passthrough_body(&fx.share()))
            .unwrap(),
    );
}

/// Bytes of files in a directory that are mapped and resident, and whether any are mapped.
fn resident_in(daemon: &DaemonProcess, dir: &Path) -> (u64, bool) {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let (mut inside, mut any, mut kib) = (false, false, 0);
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            if inside {
                kib += rss.split_whitespace().next().unwrap().parse::<u64>().unwrap();
            }
        } else if line.split(' ').next().unwrap().contains('-') {
            let path = line.split_whitespace().nth(5);
            inside = path.is_some_and(|path| Path::new(path).parent() == Some(dir));
            any |= inside;
        }
    }
    (kib * 1024, any)
}

/// What is mapped counts as its memory, and takes page tables: megabytes, for an image that nobody reads.
#[test]
fn a_daemon_gives_back_what_reading_has_mapped() {
    let fx = fixture();
    let Ok((daemon, mut client)) = used_daemon(&fx) else {
        return;
    };
    // Out of the cache now, and not into it.
    assert_eq!(client.read_file("/image/file-0").unwrap().len(), 3 << 20);
    let caches = fx.path("cache");
    let is_mapped = resident_in(&daemon, &caches).1;
    assert_eq!(is_mapped, may_be_mapped(&caches));
    if !is_mapped {
        eprintln!("skipped: cache files on this file system are not mapped");
        return;
    }
    let end = Instant::now() + PATIENCE;
    while resident_in(&daemon, &caches).0 > 0 {
        assert!(Instant::now() < end, "{:?}", resident_in(&daemon, &caches));
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.read_file("/image/file-0").unwrap().len(), 3 << 20);
    assert!(resident_in(&daemon, &caches).0 > 0, "it was mapped before");
}

/// Threads that serve the guest.
fn workers(daemon: &DaemonProcess) -> usize {
    let names = switches(daemon);
    names
        .iter()
        .filter(|(name, _)| name.contains("fs-worker"))
        .count()
}

#[test]
fn workers_are_added_while_all_are_blocked_up_to_the_limit_and_leave_afterwards() {
    const LIMIT: usize = 6;
    let fx = fixture();
    let source = fx.data_source(9, 3 << 20);
    let Ok(image) = fx.image(&source, RafsVersion::V6) else {
        return;
    };
    let server = BlobServer::start(&image.blobs).unwrap();
    let daemon = fx.daemon(&["--threads-max", &LIMIT.to_string()]);
    // Not counted: on a busy host one of them may have no name yet.
    let base = thread::available_parallelism().map_or(2, usize::from).max(2);
    let config = image::rafs_config_http_proxy(&server.address(), &fx.path("cache"));
    done(
        &daemon
            .mount("/image", &mount_body("rafs", &image.bootstrap, &config))
            .unwrap(),
    );
    let mut client = guest(&daemon);
    client.read_file("/image/file-8").unwrap();
    let nodes: Vec<u64> = (0..8)
        .map(|n| client.resolve(format!("/image/file-{n}")).unwrap().nodeid)
        .collect();
    server.hold();
    let mut tickets = Vec::new();
    for (held, node) in nodes.into_iter().enumerate() {
        tickets.push(client.submit(ops::read(node, 0, 0, 65_536)).unwrap());
        let served = (held + 1).min(LIMIT);
        assert!(server.await_held(served, PATIENCE), "{}", daemon.output());
    }
    assert_eq!(workers(&daemon), LIMIT.max(base));
    server.release();
    for ticket in tickets {
        client.wait(ticket).unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while workers(&daemon) > base {
        assert!(
            Instant::now() < end,
            "{} workers are still there",
            workers(&daemon)
        );
        thread::sleep(Duration::from_millis(50));
    }
}
