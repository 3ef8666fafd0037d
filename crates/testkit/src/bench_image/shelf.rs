//! A genuine registry with images in it, behind a proxy that lets every request take its time and counts.

use std::process::Command;
use std::time::Duration;

use super::BenchError;
use super::process::{output, program_path};
use crate::registry::{Registry, RegistryOptions};
use crate::registry_proxy::{Conditions, RegistryProxy};

/// The registry.
#[derive(Debug)]
pub(super) struct Shelf {
    registry: Registry,
    proxy: RegistryProxy,
}

/// What was asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) requests: usize,
    pub(super) bytes: u64,
}

impl Shelf {
    /// One without images, whose requests take `latency`.
    pub(super) fn new(latency: Duration) -> Result<Self, BenchError> {
        let registry = Registry::start(RegistryOptions::default()).map_err(|skip| skip.to_string())?;
        let proxy = RegistryProxy::start(registry.address())?;
        let shelf = Self { registry, proxy };
        shelf.behave(latency, None);
        Ok(shelf)
    }

    /// From now on a request takes `latency`, and all answers share a link.
    pub(super) fn behave(&self, latency: Duration, bandwidth: Option<u64>) {
        self.proxy.set_conditions(Conditions { latency, bandwidth });
    }

    /// Puts an image there, past the proxy.
    pub(super) fn put(&self, image: &str, name: &str) -> Result<(), BenchError> {
        let to = format!("docker://{}/{name}", self.registry.host());
        copy(image, &to)
    }

    /// How an image is called by those who are to wait.
    pub(super) fn name(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.proxy.host())
    }

    /// Begins to count.
    pub(super) fn forget(&self) {
        self.proxy.forget();
    }

    /// What was asked since.
    pub(super) fn asked(&self) -> Asked {
        Asked {
            requests: self.proxy.asked().len(),
            bytes: self.proxy.bytes(),
        }
    }
}

/// Copies an image with skopeo, which fetches several layers at once.
pub(super) fn copy(from: &str, to: &str) -> Result<(), BenchError> {
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let mut command = Command::new(program_path("skopeo")?);
    output(
        command
            .args(["copy", "--insecure-policy", "--quiet"])
            .args(tls)
            .args([from, to]),
    )
    .map(drop)
}
