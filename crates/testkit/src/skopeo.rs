//! skopeo, which copies and shows images of all kinds: what a genuine client makes of ours.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::peers::{Skip, require_program};
use crate::registry::{Registry, RegistryOptions};

/// The program.
#[derive(Debug)]
pub struct Skopeo {
    program: PathBuf,
}

impl Skopeo {
    /// Finds it.
    ///
    /// # Errors
    /// It is not installed.
    pub fn find() -> Result<Self, Skip> {
        let program = require_program("skopeo")?;
        Ok(Self { program })
    }

    /// Finds it, and starts a registry. `None` if one of them is not installed.
    #[must_use]
    pub fn beside_registry(options: RegistryOptions) -> Option<(Registry, Self)> {
        Some((Registry::start(options).ok()?, Self::find().ok()?))
    }

    /// Copies an image; registries need no TLS.
    ///
    /// # Panics
    /// If it fails, with what it says.
    pub fn copy(&self, from: &str, to: &str) {
        self.said(
            Command::new(&self.program)
                .args(["copy", "--quiet", "--insecure-policy"])
                .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
                .args([from, to]),
        );
    }

    /// What it says of an image, with these options.
    ///
    /// # Panics
    /// If it fails, with what it says.
    #[must_use]
    pub fn inspect(&self, options: &[&str], of: &str) -> Value {
        let mut command = Command::new(&self.program);
        let text = self.said(command.arg("inspect").args(options).arg(of));
        serde_json::from_slice(&text).unwrap()
    }

    fn said(&self, command: &mut Command) -> Vec<u8> {
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {errors}", self.program);
        output.stdout
    }
}
