//! Prefetch that is learned: what a start-up read is recorded, put in front, and there before the next one asks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::Dir;
use nydusbox_testkit::blob_server::BlobServer;
use nydusbox_testkit::daemon::{DaemonProcess, Program};
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::image::{mount_body, rafs_config_http_proxy};
use nydusbox_testkit::tree;
use serde_json::{Value, json};

const FILES: u64 = 40;
const FILE: usize = 200_000;
/// Files that the start-up reads, far from each other, in its order.
const READS: [u64; 8] = [31, 2, 17, 39, 9, 24, 5, 13];
const PATIENCE: Duration = Duration::from_secs(20);

fn nydusbox(args: &[&str], paths: &[&Path], more: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_nydusbox"))
        .args(args)
        .args(paths)
        .args(more)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A daemon that fetches from a server, with an image that is not in its cache.
struct Cold {
    server: BlobServer,
    daemon: DaemonProcess,
    _dir: Dir,
}

impl Cold {
    fn mount(image: &Path, delay: Duration, prefetch: bool) -> Self {
        let dir = Dir::new();
        let server = BlobServer::start(image.join("blobs")).unwrap();
        server.delay(delay);
        let program = Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")));
        let daemon = DaemonProcess::spawn(&program, &dir.mkdir("daemon"), &[]).unwrap();
        let config = rafs_config_http_proxy(&server.address(), &dir.join("cache"));
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["rafs"]["prefetch"] = json!({"enable": prefetch, "threads": 8});
        let body = mount_body("rafs", &image.join("image.boot"), &config.to_string());
        assert_eq!(daemon.mount("/image", &body).unwrap().status, 204);
        Self {
            server,
            daemon,
            _dir: dir,
        }
    }

    fn guest(&self) -> FuseClient {
        FuseClient::mount(&self.daemon.vhost_socket(), GuestConfig::default()).unwrap()
    }

    /// Reads as the start-up does, one after the other.
    fn start_up(&self) {
        let mut guest = self.guest();
        for n in READS {
            let content = guest.read_file(format!("/image/file-{n}")).unwrap();
            assert!(content == tree::bytes(n + 1, FILE), "file-{n}");
        }
    }

    fn trace(&self, method: &str) -> Value {
        let answer = self
            .daemon
            .api(method, "/api/v1/trace?mountpoint=/image", None)
            .unwrap();
        match answer.status {
            204 => Value::Null,
            200 => answer.json(),
            _ => panic!("{answer:?}"),
        }
    }
}

/// An image, and the same with what the start-up reads in front; how much that is, in bytes.
fn images(dir: &Dir) -> ([PathBuf; 2], u64) {
    let source = dir.mkdir("source");
    for n in 0..FILES {
        std::fs::write(source.join(format!("file-{n}")), tree::bytes(n + 1, FILE)).unwrap();
    }
    let (plain, learned, trace) = (dir.join("plain"), dir.join("learned"), dir.join("trace"));
    nydusbox(&["image", "build"], &[&source, &plain], &["--chunk-size", "64K"]);
    let cold = Cold::mount(&plain, Duration::ZERO, false);
    cold.trace("PUT");
    cold.start_up();
    let mut text = json!({"nydusbox_trace": 1}).to_string();
    for read in cold.trace("GET")["reads"].as_array().unwrap() {
        text = format!("{text}\n{read}");
    }
    std::fs::write(&trace, text).unwrap();
    let summary = nydusbox(
        &["image", "optimize"],
        &[&plain, &learned],
        &["--json", "--trace", trace.to_str().unwrap()],
    );
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["files"], READS.len());
    ([plain, learned], summary["front_bytes"].as_u64().unwrap())
}

#[test]
fn a_start_up_that_was_learned_finds_everything_there() {
    let dir = Dir::new();
    let ([_, learned], front_bytes) = images(&dir);
    let cold = Cold::mount(&learned, Duration::ZERO, true);
    let bytes = || {
        let answer = cold
            .daemon
            .api("GET", "/api/v1/metrics/blobcache?id=/image", None)
            .unwrap();
        answer.json()["prefetch_data_amount"].as_u64().unwrap()
    };
    let end = Instant::now() + PATIENCE;
    while bytes() < front_bytes {
        assert!(Instant::now() < end, "{} bytes", bytes());
        std::thread::yield_now();
    }
    let requests = cold.server.counters().gets;
    assert!(
        requests <= 6,
        "tables of two blobs, and one request for the rest: {requests}"
    );
    // Nothing more is to be had, and nothing is missed.
    cold.server.hold();
    cold.start_up();
    assert_eq!(cold.server.counters().gets, requests);
    cold.server.release();
}

/// How much time that saves is a benchmark's to say.
#[test]
fn a_start_up_that_was_learned_takes_fewer_requests() {
    let dir = Dir::new();
    let (images, _) = images(&dir);
    let [plain, learned] = images.map(|image| {
        let cold = Cold::mount(&image, Duration::from_millis(100), true);
        cold.start_up();
        cold.server.counters().gets
    });
    assert!(learned * 3 < plain * 2, "{plain} without, {learned} with");
}
