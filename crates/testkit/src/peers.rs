//! Where the genuine programs are that our behaviour is compared with.
//!
//! `cargo xtask peers` installs them. A test that needs one that is absent is skipped, with the
//! reason printed; with `NYDUSBOX_REQUIRE_PEERS=1` that is a failure instead.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// Names the directory of the peers, instead of `target/peers/bin`.
pub const PEERS_VAR: &str = "NYDUSBOX_PEERS";
/// Set to 1, an absent peer fails the test.
pub const REQUIRE_VAR: &str = "NYDUSBOX_REQUIRE_PEERS";

/// A program that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// nydusd 2.2.0.
    Nydusd,
    /// nydus-image 2.2.0.
    NydusImage,
    /// nydusctl 2.2.0.
    Nydusctl,
    /// virtiofsd 1.14.0.
    Virtiofsd,
    /// pjdfstest 0.2.2: what POSIX says of file systems.
    Pjdfstest,
    /// fsx 0.3.2: random operations on one file, checked.
    Fsx,
}

impl Peer {
    /// The name of the executable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nydusd => "nydusd",
            Self::NydusImage => "nydus-image",
            Self::Nydusctl => "nydusctl",
            Self::Virtiofsd => "virtiofsd",
            Self::Pjdfstest => "pjdfstest",
            Self::Fsx => "fsx",
        }
    }
}

/// Why a test cannot run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    reason: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.reason)
    }
}

/// Where peers are looked for.
pub fn dir() -> PathBuf {
    env::var_os(PEERS_VAR).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers/bin"),
        PathBuf::from,
    )
}

/// The path of a peer. Absent, the reason is printed and returned.
///
/// # Errors
/// [`Skip`] if it is not installed.
///
/// # Panics
/// If it is not installed and `NYDUSBOX_REQUIRE_PEERS=1`.
pub fn require(peer: Peer) -> Result<PathBuf, Skip> {
    let dir = dir();
    let path = dir.join(peer.name());
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    absent(format!(
        "{} is not in {} (run `cargo xtask peers`)",
        peer.name(),
        dir.display()
    ))
}

/// The path of a program that a Debian package brings. Absent, the reason is printed and returned.
///
/// # Errors
/// As [`require`].
///
/// # Panics
/// As [`require`].
pub fn require_program(name: &str) -> Result<PathBuf, Skip> {
    // A user's search path may be without the place where Debian has its services.
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.map_or_else(
        || absent(format!("{name} is not installed (`cargo xtask test` does that)")),
        Ok,
    )
}

fn absent(reason: String) -> Result<PathBuf, Skip> {
    let skip = Skip { reason };
    eprintln!("{skip}");
    assert!(
        env::var_os(REQUIRE_VAR).is_none_or(|v| v != "1"),
        "{skip}, and {REQUIRE_VAR}=1 forbids that"
    );
    Err(skip)
}
