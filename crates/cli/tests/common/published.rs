//! An image in nydus' form in a genuine registry, and sandboxes into which it is mounted by its reference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use nydusbox_testkit::peers::require_program;
use nydusbox_testkit::registry::{Registry, RegistryOptions};
use nydusbox_testkit::tree;

use crate::common::sandboxes::{Sandboxes, text};
use crate::common::{Dir, nydusbox, told};
use crate::layout::make_layout;

/// Files of the image; each is one chunk, and they follow each other in one blob.
pub(crate) const FILES: u64 = 16;
pub(crate) const MIB: usize = 1 << 20;
/// Where the image is in the registry.
pub(crate) const NAME: &str = "team/app:1";
const AT: &str = "/rafs/c1/lowerdir";

/// The image, and the registry that has it.
pub(crate) struct Published {
    pub(crate) registry: Registry,
    _dir: Dir,
}

/// What is in a file.
pub(crate) fn content(file: u64) -> Vec<u8> {
    tree::bytes(file + 1, MIB)
}

impl Published {
    /// `None` if what that takes is not installed.
    pub(crate) fn new(options: RegistryOptions) -> Option<Self> {
        let registry = Registry::start(options).ok()?;
        let skopeo = require_program("skopeo").ok()?;
        let dir = Dir::new();
        let contents: Vec<_> = (0..FILES).map(|n| (format!("file-{n:02}"), content(n))).collect();
        let files: Vec<_> = contents.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
        let of = make_layout(&dir.join("layout"), "of", &[&files]).to_string();
        let nydus = format!("oci:{}:nydus", dir.join("nydus").display());
        let mut convert = nydusbox();
        convert.args(["image", "convert", &of, &nydus, "--platform", "linux/amd64"]);
        let mut copy = Command::new(skopeo);
        copy.args(["copy", "--insecure-policy"]);
        if let Some(ca) = registry.ca_file() {
            let certs = dir.mkdir("certs");
            std::fs::copy(ca, certs.join("ca.crt")).unwrap();
            copy.arg("--dest-cert-dir").arg(certs);
        } else {
            copy.arg("--dest-tls-verify=false");
        }
        copy.args([&nydus, &format!("docker://{}/{NAME}", registry.host())]);
        for command in [&mut convert, &mut copy] {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {:?}", told(&output));
        }
        Some(Self { registry, _dir: dir })
    }

    /// Its name at `host`, which is the registry or stands before it.
    pub(crate) fn at(host: &str) -> String {
        format!("docker://{host}/{NAME}")
    }
}

/// A sandbox with a data directory of its own, and its guest once something has been read.
pub(crate) struct Host {
    pub(crate) s: Sandboxes,
    guest: Option<FuseClient>,
    vhost: PathBuf,
}

impl Host {
    /// A sandbox with our daemon, or with the one given.
    pub(crate) fn new(daemon: Option<&Path>) -> Self {
        Self::with_env(daemon, &[])
    }

    /// The same, started with such variables.
    pub(crate) fn with_env(daemon: Option<&Path>, env: &[(&str, &str)]) -> Self {
        let s = Sandboxes::new();
        let host = Self {
            vhost: s.state_dir().join("s1/vhost.sock"),
            s,
            guest: None,
        };
        host.start(daemon, env);
        host
    }

    /// Starts the sandbox, which it does first by itself.
    pub(crate) fn start(&self, daemon: Option<&Path>, env: &[(&str, &str)]) {
        let args = self.s.start_args("s1", daemon);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let started = self.s.command(&args).envs(env.iter().copied()).output().unwrap();
        assert!(started.status.success(), "{:?}", told(&started));
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.s.dir.join("data")
    }

    /// `mount` or `remount` of the image.
    pub(crate) fn image(&self, command: &str, reference: &str, more: &[&str]) -> Command {
        let mut full = self.s.command(&[command, "s1", "c1", "--image", reference]);
        full.args(["--platform", "linux/amd64", "--data-dir", &text(&self.data_dir())]);
        full.args(more);
        full
    }

    /// Does it; it must succeed.
    pub(crate) fn ok(&self, command: &str, reference: &str, more: &[&str]) {
        let output = self.image(command, reference, more).output().unwrap();
        assert!(output.status.success(), "{:?}", told(&output));
    }

    /// The first bytes of a file, if they can be read.
    pub(crate) fn read(&mut self, file: u64) -> Option<Vec<u8>> {
        let vhost = &self.vhost;
        let guest = self
            .guest
            .get_or_insert_with(|| FuseClient::mount(vhost, GuestConfig::default()).unwrap());
        let node = guest.resolve(format!("{AT}/file-{file:02}")).unwrap().nodeid;
        guest.read(node, 0, 0, 4096).ok()
    }

    /// Reads of these files and compares.
    pub(crate) fn assert_reads(&mut self, files: impl IntoIterator<Item = u64>) {
        for file in files {
            let read = self.read(file);
            assert!(
                read.as_deref() == Some(&content(file)[..4096]),
                "file {file}: {:?}",
                read.map(|r| (r.len(), r[..8].to_vec()))
            );
        }
    }

    /// The guest goes, and the sandbox is stopped.
    pub(crate) fn stop(&mut self) {
        self.guest = None;
        self.s.ok(&["stop", "s1"]);
    }
}
