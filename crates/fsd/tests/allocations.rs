//! What a request on the warm path takes from the heap: nothing, on shares and images alike.
//!
//! The daemon runs in this process, on an allocator that counts. Each load is driven with so many requests and then
//! with twice as many: whatever the second run takes more is what the additional requests cost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;

use nydusbox_fsd::{Daemon, DaemonConfig, InitialMount, LogControl, SocketSource, WorkerLimits};
use nydusbox_protocol::{BuildVersion, MountCommand, MountPoint, SocketPath};
use nydusbox_testkit::bench::call::{self, Call, Expected, Outcome, Shape};
use nydusbox_testkit::bench::driver::{Check, Load, Until, Wait, drive};
use nydusbox_testkit::guest::fuse::ops;
use nydusbox_testkit::guest::{FuseClient, GuestConfig, Lane};
use nydusbox_testkit::image::{self, RafsVersion};
use nydusbox_testkit::peers::{Peer, require};
use nydusbox_testkit::tree;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests of a run, where they are small.
const REQUESTS: usize = 1024;
/// Runs of which the one that takes least counts. What a request takes is in each of them; what the rest of the process
/// takes, now and then, is on a busy machine in many.
const RUNS: usize = 8;
/// Small files; their names are of one length.
const FILES: usize = 32;
/// Bytes of the large file.
const DATA: usize = 4 << 20;
/// Bytes of one entry that READDIRPLUS answers with: `fuse_entry_out`, `fuse_dirent` and up to eight bytes of name.
const ENTRY: usize = 128 + 24 + 8;
/// Entries asked for by one READDIRPLUS.
const ENTRIES: usize = 16;

/// Bytes of one entry that READDIR answers with.
const DIRENT: usize = 24 + 8;

/// What is asked; in this order, because at the end a share has forgotten its files.
const WORKS: [&str; 8] = [
    "GETATTR",
    "LOOKUP",
    "LOOKUP of no name",
    "READ of 4 KiB",
    "READ of 1 MiB",
    "READDIR of 16 entries",
    "READDIRPLUS of 16 entries",
    "FORGET",
];

/// A daemon in this process that has mounted one file system at `/mnt`.
struct Served {
    runtime: tokio::runtime::Runtime,
    daemon: Option<Daemon>,
    client: FuseClient,
}

impl Served {
    fn new(dir: &Path, command: MountCommand) -> Self {
        let socket = dir.join("vhost.sock");
        let unknown = || "unknown".to_owned();
        let config = DaemonConfig {
            metrics_addr: None,
            vhost_socket: SocketSource::Bind(SocketPath::new(&socket).unwrap()),
            api_socket: None,
            initial_mount: Some(InitialMount {
                mount_point: MountPoint::new("/mnt").unwrap(),
                command,
            }),
            request_queues: 1,
            workers: WorkerLimits::default(),
            id: None,
            supervisor: None,
            version: BuildVersion {
                package_ver: unknown(),
                git_commit: unknown(),
                build_time: unknown(),
                profile: unknown(),
                rustc: unknown(),
            },
            log: LogControl::new(|_| {}),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let daemon = runtime.block_on(async { Daemon::start(config) }).unwrap();
        let client = FuseClient::mount(&socket, GuestConfig::default()).unwrap();
        Self {
            runtime,
            daemon: Some(daemon),
            client,
        }
    }

    /// The requests of each of [`WORKS`].
    fn works(&mut self, data: &Arc<[u8]>, no_entry: Outcome) -> Vec<(Shape, Vec<Call>)> {
        let client = &mut self.client;
        let root = client.resolve("/mnt").unwrap().nodeid;
        let names: Vec<String> = (0..FILES).map(name).collect();
        let nodes: Vec<u64> = names
            .iter()
            .map(|name| client.lookup(root, name.as_bytes()).unwrap().nodeid)
            .collect();
        let large = client.lookup(root, b"large").unwrap().nodeid;
        let fh = client.open(large, 0).unwrap().fh;
        let dir = client.opendir(root).unwrap().fh;
        let mut listed = |body, size: usize| {
            let ticket = client.submit(body);
            let content: Arc<[u8]> = client.wait(ticket.unwrap()).unwrap().into();
            assert_eq!(content.len(), size);
            Expected {
                at: 0,
                range: 0..size,
                content,
            }
        };
        let (plain, plus) = (DIRENT * ENTRIES, ENTRY * ENTRIES);
        let plain = listed(ops::readdir(root, dir, 0, u32::try_from(plain).unwrap()), plain);
        let plus = listed(ops::readdirplus(root, dir, 0, u32::try_from(plus).unwrap()), plus);
        let reads = |size: usize| {
            let at = |n: usize| call::read(large, fh, data, n * size..(n + 1) * size);
            (call::read_shape(size), (0..DATA / size).map(at).collect())
        };
        vec![
            (
                call::GETATTR,
                (0..FILES)
                    .map(|n| call::getattr(nodes[n], n as u64 + 1))
                    .collect(),
            ),
            (
                call::lookup_shape(names[0].len()),
                (0..FILES)
                    .map(|n| call::lookup(root, &names[n], nodes[n]))
                    .collect(),
            ),
            (
                call::no_entry_shape(names[0].len(), no_entry),
                (0..FILES)
                    .map(|n| call::lookup(root, &names[n].replace('f', "F"), 0))
                    .collect(),
            ),
            reads(4096),
            reads(1 << 20),
            (
                call::readdir_shape(plain.range.len()),
                vec![call::list(root, dir, plain)],
            ),
            (
                call::readdirplus_shape(plus.range.len()),
                vec![call::list(root, dir, plus)],
            ),
            (call::FORGET, nodes.into_iter().map(call::forget).collect()),
        ]
    }

    /// Allocations while so many requests are made and answered.
    fn allocations(&mut self, shape: Shape, calls: &[Call], count: usize) -> usize {
        let calls: Vec<Call> = calls.iter().cycle().take(count).cloned().collect();
        let load = [Load {
            shape,
            depth: 4,
            calls: &calls,
        }];
        let parts = self.client.guest().parts(Lane::Request(0)).unwrap();
        let before = HEAP.stats();
        drive(parts, &load, (Wait::Spin, Check::Spot, Until::FirstDone)).unwrap();
        let taken = HEAP.stats() - before;
        taken.allocations + taken.reallocations
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            self.runtime.block_on(daemon.stop());
        }
    }
}

/// Requests of a run.
fn requests(work: &str) -> usize {
    if work.contains("MiB") {
        REQUESTS / 4
    } else {
        REQUESTS
    }
}

fn name(n: usize) -> String {
    format!("file-{n:03}")
}

/// One test, because the counts are those of the whole process.
#[test]
fn requests_on_the_warm_path_take_nothing_from_the_heap() {
    let dir = tempfile::Builder::new().prefix("nydusbox-").tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for n in 0..FILES {
        std::fs::write(source.join(name(n)), tree::bytes(n as u64, n + 1)).unwrap();
    }
    let data: Arc<[u8]> = tree::bytes(4711, DATA).into();
    std::fs::write(source.join("large"), &data).unwrap();
    let share = MountCommand::passthrough(source.to_str().unwrap());
    let mut measured = vec![measure(dir.path(), share, &data, Outcome::Error(2))];
    if let Ok(builder) = require(Peer::NydusImage) {
        for (kind, version) in [("v5", RafsVersion::V5), ("v6", RafsVersion::V6)] {
            let home = dir.path().join(kind);
            let image = image::build(&builder, &source, &home, version).unwrap();
            let config = image::rafs_config_localfs(&image.blobs, &home.join("cache"));
            let command = MountCommand::rafs(image.bootstrap.to_str().unwrap(), config);
            measured.push(measure(&home, command, &data, Outcome::Answer));
        }
    }
    for (kind, counts) in ["share", "v5", "v6"].into_iter().zip(measured) {
        assert_eq!(
            counts,
            WORKS.map(|work| (work, 0)),
            "{kind}: allocations of {REQUESTS} requests, a quarter where they are large"
        );
    }
}

fn measure(
    dir: &Path,
    command: MountCommand,
    data: &Arc<[u8]>,
    no_entry: Outcome,
) -> Vec<(&'static str, usize)> {
    let mut served = Served::new(dir, command);
    let works = served.works(data, no_entry);
    let mut counts = Vec::new();
    for (work, (shape, calls)) in WORKS.into_iter().zip(works) {
        // The least of some: a worker's own buffers grow when it first serves.
        let mut least = |count| {
            let runs = (0..RUNS).map(|_| served.allocations(shape, &calls, count));
            runs.min().unwrap()
        };
        let count = requests(work);
        let (once, twice) = (least(count), least(2 * count));
        counts.push((work, twice - once));
    }
    counts
}
