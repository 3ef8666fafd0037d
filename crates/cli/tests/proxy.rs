//! Blobs through a genuine caching proxy that is killed in the middle, with the configuration of docs/dragonfly.md.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{document_block, require};
use nydusbox_testkit::blob_server::BlobServer;
use nydusbox_testkit::caching_proxy::CachingProxy;
use nydusbox_testkit::daemon::{DaemonProcess, Program};
use nydusbox_testkit::guest::FuseClient;
use nydusbox_testkit::guest::fuse::ops;
use nydusbox_testkit::image::{Image, RafsVersion, mount_body};
use nydusbox_testkit::suite::fixture::{Fixture, done, guest};
use nydusbox_testkit::tree;

const MIB: usize = 1 << 20;
const CHUNKS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// An image in a registry, a proxy before it, and daemons that use it.
struct Site {
    fixture: Fixture,
    image: Image,
    content: Vec<u8>,
    registry: BlobServer,
    proxy: CachingProxy,
}

impl Site {
    fn new() -> Option<Self> {
        let nginx = require("nginx", &[Some(PathBuf::from("/usr/sbin/nginx"))])?;
        let program = Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")));
        let fixture = Fixture::new(&program);
        let source = fixture.data_source(1, CHUNKS * MIB);
        let content = fs::read(source.join("file-0")).unwrap();
        assert!(content == tree::bytes(1, CHUNKS * MIB));
        let image = fixture.image(&source, RafsVersion::V6).ok()?;
        Some(Self {
            registry: BlobServer::start(&image.blobs).unwrap(),
            proxy: CachingProxy::start(&nginx, &fixture.path("proxy")),
            fixture,
            image,
            content,
        })
    }

    /// The documented configuration, for this site.
    fn config(&self, cache: &Path, fallback: bool) -> String {
        let mut config: serde_json::Value =
            serde_json::from_str(&document_block("dragonfly.md", "json")).unwrap();
        config["cache"]["filecache"]["work_dir"] = cache.to_str().unwrap().into();
        let registry = &mut config["backend"]["registry"];
        registry["scheme"] = "http".into();
        registry["host"] = self.registry.address().into();
        let proxy = &mut registry["proxy"];
        proxy["url"] = self.proxy.url().into();
        proxy["ping_url"] = self.proxy.ping_url().into();
        proxy["check_interval"] = 1.into();
        proxy["fallback"] = fallback.into();
        config.to_string()
    }

    fn daemon(&self, home: &Fixture, fallback: bool) -> (DaemonProcess, FuseClient, u64) {
        let daemon = home.daemon(&[]);
        let config = self.config(&home.path("cache"), fallback);
        let body = mount_body("rafs", &self.image.bootstrap, &config);
        done(&daemon.mount("/image", &body).unwrap());
        let mut fs = guest(&daemon);
        let node = fs.resolve("/image/file-0").unwrap().nodeid;
        (daemon, fs, node)
    }

    /// Reads a little of some chunks.
    fn assert_reads(&self, fs: &mut FuseClient, node: u64, chunks: impl IntoIterator<Item = usize>) {
        for at in chunks.into_iter().map(|chunk| chunk * MIB) {
            let read = fs.read(node, 0, at as u64, 4096).unwrap();
            assert!(read == self.content[at..at + 4096], "at {at}");
        }
    }
}

#[test]
fn a_second_host_gets_from_the_proxy_what_the_first_one_read() {
    let Some(site) = Site::new() else { return };
    let homes = [(); 2].map(|()| Fixture::new(site.fixture.program()));
    let (_daemon, mut fs, node) = site.daemon(&homes[0], true);
    site.assert_reads(&mut fs, node, [0, 9, 3]);
    let (asked, passed) = (site.registry.counters().gets, site.proxy.requests());
    assert!(asked > 0 && passed > 0, "{asked} {passed}");
    let (_other, mut fs, node) = site.daemon(&homes[1], true);
    site.assert_reads(&mut fs, node, [3, 0, 9]);
    assert_eq!(
        site.registry.counters().gets,
        asked,
        "the registry was asked again"
    );
    assert!(site.proxy.requests() > passed);
}

#[test]
fn a_proxy_killed_in_the_middle_costs_no_read_and_is_used_again_once_it_is_back() {
    let Some(mut site) = Site::new() else { return };
    let home = Fixture::new(site.fixture.program());
    let (_daemon, mut fs, node) = site.daemon(&home, true);
    site.assert_reads(&mut fs, node, [0]);
    site.registry.hold();
    let read = fs.submit(ops::read(node, 0, 5 << 20, 4096)).unwrap();
    assert!(
        site.registry.await_held(1, PATIENCE),
        "the proxy has passed it on"
    );
    site.proxy.kill();
    site.registry.release();
    assert!(fs.wait(read).unwrap() == site.content[5 * MIB..5 * MIB + 4096]);
    site.assert_reads(&mut fs, node, [11, 2]);

    site.proxy.start_again();
    let passed = site.proxy.requests();
    let deadline = Instant::now() + PATIENCE;
    let mut chunks = (0..CHUNKS)
        .chain(0..CHUNKS)
        .filter(|c| ![0, 2, 5, 11].contains(c));
    while site.proxy.requests() == passed {
        assert!(Instant::now() < deadline, "the proxy is not asked any more");
        // A chunk each time that it has noticed nothing yet.
        site.assert_reads(&mut fs, node, chunks.next());
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn without_fallback_a_read_waits_for_the_proxy() {
    let Some(mut site) = Site::new() else { return };
    let home = Fixture::new(site.fixture.program());
    let (_daemon, mut fs, node) = site.daemon(&home, false);
    site.assert_reads(&mut fs, node, [0]);
    let asked = site.registry.counters().gets;
    site.proxy.kill();
    let read = fs.submit(ops::read(node, 0, 5 << 20, 4096)).unwrap();
    site.proxy.start_again();
    assert!(fs.wait(read).unwrap() == site.content[5 * MIB..5 * MIB + 4096]);
    assert!(site.registry.counters().gets > asked);
}
