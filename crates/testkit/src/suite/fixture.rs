//! What every behaviour starts from: a directory of its own, a share, images, daemons, guests.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::daemon::{DaemonProcess, Program};
use crate::guest::fuse::paths::TreeSum;
use crate::guest::{FuseClient, GuestConfig};
use crate::http::Response;
use crate::image::{self, Image, RafsVersion};
use crate::peers::{Peer, Skip, require};
use crate::tree;

/// Where the share is mounted, as Kata does.
pub const SHARE: &str = "/containers";

/// A behaviour's surroundings; removed at its end.
#[derive(Debug)]
pub struct Fixture {
    dir: TempDir,
    program: Program,
}

impl Fixture {
    /// An empty place for one behaviour of one daemon.
    ///
    /// # Panics
    /// If there can be no temporary directory.
    pub fn new(program: &Program) -> Self {
        let dir = tempfile::Builder::new().prefix("nydusbox-").tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        Self {
            dir,
            program: program.clone(),
        }
    }

    /// The daemon under test.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// A path in the fixture's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The host directory that is shared.
    pub fn share(&self) -> PathBuf {
        self.path("share")
    }

    /// A running daemon without mounts.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn daemon(&self, extra_args: &[&str]) -> DaemonProcess {
        DaemonProcess::spawn(&self.program, self.dir.path(), extra_args).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A running daemon with the share at [`SHARE`].
    ///
    /// # Panics
    /// If it does not come up, or refuses the mount.
    pub fn sharing_daemon(&self) -> DaemonProcess {
        let daemon = self.daemon(&[]);
        done(
            &daemon
                .mount(SHARE, &image::passthrough_body(&self.share()))
                .unwrap(),
        );
        daemon
    }

    /// A source tree with everything in it, and its sum.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn source(&self) -> (PathBuf, TreeSum) {
        let source = self.path("source");
        fs::create_dir(&source).unwrap();
        tree::generate(&source).unwrap();
        let sum = tree::sum(&source).unwrap();
        (source, sum)
    }

    /// A source with `count` files `file-N` of `size` incompressible bytes, for data traffic.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn data_source(&self, count: u64, size: usize) -> PathBuf {
        let source = self.path("source");
        fs::create_dir(&source).unwrap();
        for i in 0..count {
            fs::write(source.join(format!("file-{i}")), tree::bytes(i + 1, size)).unwrap();
        }
        source
    }

    /// An image of a source.
    ///
    /// # Errors
    /// [`Skip`] without nydus-image.
    ///
    /// # Panics
    /// If it cannot be built.
    pub fn image(&self, source: &Path, version: RafsVersion) -> Result<Image, Skip> {
        let builder = require(Peer::NydusImage)?;
        Ok(image::build(&builder, source, &self.path("image"), version).unwrap())
    }

    /// The body that mounts an image with its blobs in the local directory.
    pub fn local_body(&self, image: &Image) -> String {
        image::mount_body("rafs", &image.bootstrap, &self.local_config(image))
    }

    /// The configuration in it. nydusd is spared what it cannot do; see the suite's table.
    pub fn local_config(&self, image: &Image) -> String {
        self.spare(image::rafs_config_localfs(&image.blobs, &self.path("cache")))
    }

    /// A configuration that the daemon under test can serve RAFS v5 with.
    pub fn spare(&self, config: String) -> String {
        if self.program.is_ours() {
            config
        } else {
            image::without_read_amplification(&config)
        }
    }
}

/// A guest that has mounted, with the default configuration.
///
/// # Panics
/// If it cannot.
pub fn guest(daemon: &DaemonProcess) -> FuseClient {
    guest_with(daemon, GuestConfig::default())
}

/// A guest that has mounted.
///
/// # Panics
/// If it cannot.
pub fn guest_with(daemon: &DaemonProcess, config: GuestConfig) -> FuseClient {
    FuseClient::mount(&daemon.vhost_socket(), config).unwrap_or_else(|e| panic!("mount: {e:?}"))
}

/// Asserts that the API did it.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn done(response: &Response) {
    assert_eq!((response.status, response.body.as_str()), (204, ""));
}

/// Asserts that the API refused with a status, in the flat form Kata reads; gives the message.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn refused(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{response:?}");
    let json = response.json();
    let field = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    assert!(
        !field("code").is_empty() && !field("message").is_empty(),
        "{response:?}"
    );
    field("message")
}
