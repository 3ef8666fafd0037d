//! Which certificates a sandbox's daemon trusts: a file that it is told of when it is started, and reads again for each
//! backend that it opens.
//!
//! At first it is a link to the system's certificates. An image that needs another authority adds that; nothing is
//! taken away as long as the sandbox lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox::{CERTIFICATES, CERTIFICATES_NEW};

use crate::daemon_env::system_certificates;

/// The file.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    file: PathBuf,
    new: PathBuf,
}

impl Trust {
    /// Of the sandbox with this directory.
    pub(super) fn in_sandbox(dir: &Path) -> Self {
        Self {
            file: dir.join(CERTIFICATES),
            new: dir.join(CERTIFICATES_NEW),
        }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Makes the file, unless an earlier supervisor of the sandbox has.
    pub(super) fn begin(&self) -> io::Result<()> {
        let made = match system_certificates() {
            Some(system) => std::os::unix::fs::symlink(system, &self.file),
            // The daemon's TLS looks once whether it is there.
            None => fs::File::create_new(&self.file).map(drop),
        };
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Adds certificates (PEM), in one step.
    pub(super) fn add(&self, certificates: &str) -> io::Result<()> {
        if certificates.is_empty() {
            return Ok(());
        }
        let known = match fs::read(&self.file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            known => known?,
        };
        let mut text = String::from_utf8_lossy(&known).into_owned();
        if text.contains(certificates) {
            return Ok(());
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(certificates);
        fs::write(&self.new, text)?;
        fs::rename(&self.new, &self.file)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_systems_certificates_stay_trusted_and_are_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::in_sandbox(dir.path());
        let system = dir.path().join("system");
        fs::write(&system, "SYSTEM").unwrap();
        std::os::unix::fs::symlink(&system, trust.file()).unwrap();
        // Another supervisor's.
        trust.begin().unwrap();
        trust.add("").unwrap();
        assert!(fs::symlink_metadata(trust.file()).unwrap().is_symlink());
        for added in ["ONE\n", "TWO\n", "ONE\n"] {
            trust.add(added).unwrap();
        }
        assert_eq!(fs::read_to_string(trust.file()).unwrap(), "SYSTEM\nONE\nTWO\n");
        assert_eq!(fs::read_to_string(&system).unwrap(), "SYSTEM");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
