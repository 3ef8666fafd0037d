//! Prefetching: what is named is fetched, nothing else is, and never before what a guest waits for.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cold;
use super::fixture::{Fixture, done, guest};
use crate::blob_server::BlobServer;
use crate::daemon::DaemonProcess;
use crate::guest::fuse::ops;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::peers::{Peer, Skip, require};
use crate::tree;

type Outcome = Result<(), Skip>;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;
/// What is named: two files in a directory, in MiB, and the file beside it.
const NAMED: [usize; 2] = [3, 2];
const REST: usize = 8;

struct Stocked {
    image: Image,
    server: BlobServer,
}

fn content(n: usize) -> Vec<u8> {
    tree::bytes(n as u64 + 1, NAMED.get(n).copied().unwrap_or(REST) * MIB)
}

/// An image with `/named/0`, `/named/1` and `/rest`.
fn stocked(fx: &Fixture, table: &[&str]) -> Result<Stocked, Skip> {
    let builder = require(Peer::NydusImage)?;
    let source = fx.path("source");
    fs::create_dir_all(source.join("named")).unwrap();
    for n in 0..NAMED.len() {
        fs::write(source.join(format!("named/{n}")), content(n)).unwrap();
    }
    fs::write(source.join("rest"), content(NAMED.len())).unwrap();
    let out = fx.path("image");
    let image = image::build_with_prefetch(&builder, &source, &out, RafsVersion::V6, table).unwrap();
    let server = BlobServer::start(&image.blobs).unwrap();
    Ok(Stocked { image, server })
}

/// A configuration that prefetches.
fn eager(config: &str, all: bool) -> String {
    let mut value: Value = serde_json::from_str(config).unwrap();
    value["rafs"]["prefetch"] = json!({"enable": true, "threads": 1, "prefetch_all": all});
    value.to_string()
}

fn mount(fx: &Fixture, stocked: &Stocked, all: bool, files: Option<&[&str]>) -> DaemonProcess {
    let config = image::rafs_config_http_proxy(&stocked.server.address(), &fx.path("cache"));
    let body = mount_body("rafs", &stocked.image.bootstrap, &eager(&config, all));
    let mut body: Value = serde_json::from_str(&body).unwrap();
    if let Some(files) = files {
        body["prefetch_files"] = files.into();
    }
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &body.to_string()).unwrap());
    daemon
}

/// How much has been prefetched, as the daemon's counters say, in bytes of the blob.
fn prefetched(daemon: &DaemonProcess) -> u64 {
    let answer = daemon
        .api("GET", "/api/v1/metrics/blobcache?id=%2Fimage", None)
        .unwrap();
    answer.json()["prefetch_data_amount"].as_u64().unwrap()
}

/// Waits until so many MiB of content have been prefetched; how long that is in the blob is a matter of compression.
fn await_prefetched(stocked: &Stocked, daemon: &DaemonProcess, mib: usize) {
    let bytes = share_of_blob(stocked, mib);
    let end = Instant::now() + PATIENCE;
    while prefetched(daemon) < bytes {
        assert!(Instant::now() < end, "{} of {bytes} bytes", prefetched(daemon));
        std::thread::yield_now();
    }
}

/// The length in the blob of so many MiB of content: all of it is alike. Less 1 %, for what is no content.
fn share_of_blob(stocked: &Stocked, mib: usize) -> u64 {
    let blob = crate::blob_server::total_bytes(&stocked.image.blobs).unwrap();
    let whole = NAMED.iter().sum::<usize>() + REST;
    blob * mib as u64 / whole as u64 * 99 / 100
}

/// What is named can be read while the backend answers nothing, and little else was fetched.
fn assert_only_named(stocked: &Stocked, daemon: &DaemonProcess) {
    let named: usize = NAMED.iter().sum();
    await_prefetched(stocked, daemon, named);
    stocked.server.hold();
    let mut fs = guest(daemon);
    for n in 0..NAMED.len() {
        assert!(
            fs.read_file(format!("/image/named/{n}")).unwrap() == content(n),
            "{n}"
        );
    }
    let fetched = stocked.server.counters().bytes;
    assert!(fetched < share_of_blob(stocked, named + 1), "{fetched} bytes");
    stocked.server.release();
    assert!(fs.read_file("/image/rest").unwrap() == content(NAMED.len()));
}

pub(super) fn files_named_by_the_mount(fx: &Fixture) -> Outcome {
    let stocked = stocked(fx, &["/rest"])?;
    let daemon = mount(fx, &stocked, false, Some(&["/named"]));
    assert_only_named(&stocked, &daemon);
    Ok(())
}

pub(super) fn files_named_by_the_image(fx: &Fixture) -> Outcome {
    let stocked = stocked(fx, &["/named"])?;
    let daemon = mount(fx, &stocked, false, None);
    assert_only_named(&stocked, &daemon);
    Ok(())
}

pub(super) fn everything_if_asked_for(fx: &Fixture) -> Outcome {
    let stocked = stocked(fx, &[])?;
    let daemon = mount(fx, &stocked, true, None);
    await_prefetched(&stocked, &daemon, NAMED.iter().sum::<usize>() + REST);
    stocked.server.hold();
    let mut fs = guest(&daemon);
    for (n, name) in ["named/0", "named/1", "rest"].into_iter().enumerate() {
        assert!(
            fs.read_file(format!("/image/{name}")).unwrap() == content(n),
            "{name}"
        );
    }
    let blob = crate::blob_server::total_bytes(&stocked.image.blobs).unwrap();
    assert!(
        stocked.server.counters().bytes <= blob,
        "nothing is fetched twice"
    );
    Ok(())
}

/// By the order in which requests reach the backend.
pub(super) fn never_before_a_reader(fx: &Fixture) -> Outcome {
    let cold = cold::cold(fx, RafsVersion::V6)?;
    cold.server.hold();
    let daemon = cold.daemon(fx, &eager(&cold.config(fx, &fx.path("cache")), true));
    let mut fs = guest(&daemon);
    let node = fs.resolve("/image/file-0").unwrap().nodeid;
    assert!(cold.server.await_held(1, PATIENCE), "the table of chunks");
    cold.server.let_through(1);
    assert!(cold.server.await_held(1, PATIENCE), "the first to be prefetched");
    let chunk = |n: usize| ops::read(node, 0, (n * MIB) as u64, 4096);
    let first = fs.submit(chunk(13)).unwrap();
    assert!(cold.server.await_held(2, PATIENCE), "a reader");
    cold.server.let_through(1);
    while prefetched(&daemon) == 0 {
        std::thread::yield_now();
    }
    // A reader waits: prefetching has nothing more to ask for.
    let second = fs.submit(chunk(10)).unwrap();
    assert!(cold.server.await_held(2, PATIENCE), "another reader");
    let asked = cold.server.asked();
    assert_eq!(asked.len(), 4, "table, prefetch, and both readers: {asked:?}");
    cold.server.let_through(2);
    assert!(fs.wait(first).unwrap() == cold.content[13 * MIB..13 * MIB + 4096]);
    assert!(fs.wait(second).unwrap() == cold.content[10 * MIB..10 * MIB + 4096]);
    assert!(cold.server.await_held(1, PATIENCE), "and prefetching goes on");
    cold.server.release();
    cold.assert_reads_right(&mut fs);
    Ok(())
}
