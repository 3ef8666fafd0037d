//! What the tests of this directory share: a clock without waiting, and sources that find nothing on this machine.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;

use super::clock::Clock;
use super::error::RegistryError;
use super::name::RegistryName;
use super::sink::RegistrySink;
use super::source::RegistrySource;
use super::test_server::TestServer;
use crate::source::{AccessOptions, ImageSource, sha256_of};

/// A clock on which waiting is all that takes time.
#[derive(Debug)]
pub(super) struct TestClock {
    begin: Instant,
    waits: Mutex<Vec<Duration>>,
}

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            waits: Mutex::default(),
        })
    }

    pub(super) fn waits(&self) -> Vec<Duration> {
        self.waits.lock().unwrap().clone()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.begin + self.waits().iter().sum::<Duration>()
    }

    fn wait(&self, time: Duration) {
        self.waits.lock().unwrap().push(time);
    }

    fn scatter(&self) -> f64 {
        1.0
    }
}

/// A source that finds nothing on this machine, and the clock it has.
pub(super) fn source(server: &TestServer) -> (RegistrySource, Arc<TestClock>) {
    source_with(server, &json!({}), |_| {})
}

pub(super) fn source_with(
    server: &TestServer,
    auths: &serde_json::Value,
    change: impl FnOnce(&mut AccessOptions),
) -> (RegistrySource, Arc<TestClock>) {
    let clock = TestClock::new();
    let shared: Arc<dyn Clock> = clock.clone();
    let opened = opened(server, auths, change, |name, options| {
        RegistrySource::open(name, options, &shared)
    });
    (opened, clock)
}

/// The same to write to.
pub(super) fn sink(server: &TestServer) -> (RegistrySink, Arc<TestClock>) {
    sink_with(server, &json!({}), |_| {})
}

pub(super) fn sink_with(
    server: &TestServer,
    auths: &serde_json::Value,
    change: impl FnOnce(&mut AccessOptions),
) -> (RegistrySink, Arc<TestClock>) {
    let clock = TestClock::new();
    let shared: Arc<dyn Clock> = clock.clone();
    let opened = opened(server, auths, change, |name, options| {
        RegistrySink::open(name, options, &shared)
    });
    (opened, clock)
}

fn opened<T>(
    server: &TestServer,
    auths: &serde_json::Value,
    change: impl FnOnce(&mut AccessOptions),
    open: impl FnOnce(&RegistryName, &AccessOptions) -> Result<T, RegistryError>,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let auth_file = dir.path().join("config.json");
    std::fs::write(&auth_file, json!({ "auths": auths }).to_string()).unwrap();
    let mut options = AccessOptions {
        auth_file: Some(auth_file),
        hosts_dir: Some(dir.path().join("none")),
        ..AccessOptions::default()
    };
    change(&mut options);
    let name = format!("{}/team/app:1", server.host()).parse().unwrap();
    open(&name, &options).unwrap()
}

pub(super) fn layer(content: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, content.len() as u64, sha256_of(content))
}

pub(super) fn read(source: &RegistrySource, blob: &Descriptor) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let mut reader = source.blob(blob).map_err(|error| chain(&error))?;
    reader.read_to_end(&mut content).map_err(|error| chain(&error))?;
    Ok(content)
}

/// An error as the command shows it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        if !text.ends_with(&error.to_string()) {
            text.push_str(&format!(": {error}"));
        }
        next = error.source();
    }
    text
}

/// Content that no two places of look alike.
pub(super) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .flat_map(|at| at.to_le_bytes())
        .take(bytes)
        .collect()
}
