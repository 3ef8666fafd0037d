//! A genuine registry: Debian's `docker-registry` on loopback, open, behind a password, or behind TLS.
//!
//! ```no_run
//! # fn main() -> Result<(), nydusbox_testkit::peers::Skip> {
//! use nydusbox_testkit::registry::{Registry, RegistryOptions};
//! let registry = Registry::start(RegistryOptions { tls: true, ..RegistryOptions::default() })?;
//! let reference = format!("docker://{}/library/debian:12", registry.host());
//! let ca = registry.ca_file(); // in certs.d: ca.crt
//! # Ok(()) }
//! ```
//! Storage, configuration and certificates are in a directory of its own, which goes with the value, as the
//! process does. It listens on a port that the kernel gives it, and is ready when it says so. This file makes
//! nothing go wrong: [`registry_proxy`](crate::registry_proxy) stands in front of a registry for that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peers::{self, Skip};

/// Who is let in where [`RegistryOptions::password`] is set.
pub const USER: &str = "someone";
/// With this password.
pub const PASSWORD: &str = "correct horse";
/// bcrypt of [`PASSWORD`], at the lowest cost there is: docker-registry takes no other hash, and asks it at
/// every request.
const HTPASSWD: &str = "someone:$2b$04$3UHMbHV4A./DE6wgZt6as.Qd/ng3vHD355H7hPSfxVfWQsbqx9uxO\n";

/// What a [`Registry`] asks of its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// [`USER`] and [`PASSWORD`], by basic authentication.
    pub password: bool,
    /// That they know the authority which signed its certificate: [`Registry::ca_file`].
    pub tls: bool,
}

/// The process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    ca_file: Option<PathBuf>,
    storage: PathBuf,
    _dir: TempDir,
    output: Option<JoinHandle<()>>,
}

impl Registry {
    /// Starts an empty one, and returns when it listens.
    ///
    /// # Errors
    /// [`Skip`] if the program is not installed.
    ///
    /// # Panics
    /// If it ends instead, with what it said; and as [`peers::require_program`].
    pub fn start(options: RegistryOptions) -> Result<Self, Skip> {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("data");
        Self::start_in(options, dir, storage)
    }

    /// The same with what it stores in a directory that is the caller's.
    ///
    /// # Errors
    /// As [`Self::start`].
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_on(options: RegistryOptions, storage: &Path) -> Result<Self, Skip> {
        Self::start_in(options, tempfile::tempdir().unwrap(), storage.to_owned())
    }

    fn start_in(options: RegistryOptions, dir: TempDir, storage: PathBuf) -> Result<Self, Skip> {
        let program = peers::require_program("docker-registry")?;
        let tls = options.tls.then(|| certificates(dir.path()));
        let ca_file = tls.is_some().then(|| dir.path().join("ca.crt"));
        let config = dir.path().join("config.yml");
        fs::write(
            &config,
            configuration(dir.path(), &storage, options.password, tls).to_string(),
        )
        .unwrap();
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stderr.take().unwrap());
        let Ok(address) = address_in(&mut output) else {
            // It may have ended by itself.
            let _killed = child.kill();
            let said = address_in(&mut output).err().unwrap_or_default();
            panic!("docker-registry ended with {}: {said}", child.wait().unwrap());
        };
        Ok(Self {
            child,
            address,
            ca_file,
            storage,
            _dir: dir,
            // Or it would stand still once the pipe is full.
            output: Some(thread::spawn(move || output.lines().for_each(drop))),
        })
    }

    /// `127.0.0.1:PORT`: what an image's name begins with.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the authority that signed the registry's, in PEM, if it speaks TLS.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Where it keeps a blob, from `sha256:…`.
    ///
    /// # Panics
    /// If that is no digest.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Whether a repository has this tag.
    pub fn has_tag(&self, repository: &str, tag: &str) -> bool {
        let tags = self.repository(repository).join("_manifests/tags");
        tags.join(tag).join("current/link").exists()
    }

    /// The digests of the blobs a repository has, manifests not among them.
    pub fn blobs_of(&self, repository: &str) -> Vec<String> {
        let layers = self.repository(repository).join("_layers/sha256");
        let complete = names_in(&layers)
            .into_iter()
            .filter(|hex| layers.join(hex).join("link").exists());
        complete.map(|hex| format!("sha256:{hex}")).collect()
    }

    /// Uploads that were begun, and neither ended nor cancelled.
    pub fn uploads_of(&self, repository: &str) -> Vec<String> {
        let uploads = self.repository(repository).join("_uploads");
        // Of a cancelled one it keeps a directory, but does not know it any more.
        let is_known = |name: &String| uploads.join(name).join("startedat").exists();
        names_in(&uploads).into_iter().filter(is_known).collect()
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.storage.join("docker/registry/v2/repositories").join(name)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(output) = self.output.take() {
            let _joined = output.join();
        }
    }
}

/// Reads up to the line that says where it listens; all that it said, if it ends without one.
fn address_in(output: &mut BufReader<ChildStderr>) -> Result<SocketAddr, String> {
    let mut said = String::new();
    for line in output.lines().map_while(Result::ok) {
        let after = line.split_once("listening on ").map(|(_, after)| after);
        let address = after.and_then(|after| after.split(['"', ',']).next()?.parse().ok());
        if let Some(address) = address {
            return Ok(address);
        }
        said.push_str(&line);
        said.push('\n');
    }
    Err(said)
}

/// None if there is no such directory.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Its configuration, as JSON, which is YAML too.
fn configuration(dir: &Path, storage: &Path, password: bool, tls: Option<Value>) -> Value {
    let mut config = json!({
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": storage},
            "delete": {"enabled": true},
            "maintenance": {"uploadpurging": {"enabled": false}},
        },
        "http": {"addr": "127.0.0.1:0", "secret": "told to nobody"},
    });
    if let Some(tls) = tls {
        config["http"]["tls"] = tls;
    }
    if password {
        let path = dir.join("htpasswd");
        fs::write(&path, HTPASSWD).unwrap();
        config["auth"] = json!({"htpasswd": {"realm": "tests", "path": path}});
    }
    config
}

/// Makes an authority and a certificate of its for this host; how the registry's configuration names them.
fn certificates(dir: &Path) -> Value {
    let make = |name: &str, rest: &[&str]| {
        let output = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '))
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
            .args(rest)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    make("ca", &["-subj", "/CN=the authority of tests"]);
    make(
        "host",
        &[
            "-subj",
            "/CN=localhost",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            // An authority's certificate is not taken for a server's.
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ],
    );
    json!({"certificate": dir.join("host.crt"), "key": dir.join("host.key")})
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
