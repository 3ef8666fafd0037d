//! Where sandboxes are: one directory each below the state directory.
//!
//! Owns the default place and the names inside; what a directory there means is found out in `control/presence.rs`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;

use crate::error::Failure;

/// The directory with one directory for each sandbox, absolute.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// The directory given, or the user's default.
    pub(crate) fn new(given: Option<PathBuf>) -> Result<Self, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        let path = given.unwrap_or_else(|| default(std::env::var_os("XDG_RUNTIME_DIR"), is_root));
        std::path::absolute(&path)
            .map(Self)
            .map_err(|e| Failure::new(&format!("use the state directory {}", path.display()), &e))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A sandbox's directory, there or not.
    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.0.join(id.as_str())
    }

    /// Every sandbox that has a directory, by name. Other files are not ours to judge and are left out.
    pub(crate) fn list(&self) -> Result<Vec<SandboxId>, Failure> {
        let failed =
            |e: io::Error| Failure::new(&format!("read the state directory {}", self.0.display()), &e);
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            if let Some(id) = entry.file_name().to_str().and_then(|n| SandboxId::new(n).ok())
                && is_dir
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// By the XDG rule, a directory that is not absolute counts as none.
fn default(runtime_dir: Option<OsString>, is_root: bool) -> PathBuf {
    match runtime_dir.map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) if !is_root => dir.join("nydusbox"),
        _ => nydusbox::DEFAULT_STATE_DIR.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_directory_that_is_not_absolute_counts_as_none() {
        let is = |given: Option<&str>, is_root| default(given.map(OsString::from), is_root);
        assert_eq!(is(Some("/run/user/7"), false), Path::new("/run/user/7/nydusbox"));
        for given in [None, Some(""), Some("run"), Some("./run")] {
            assert_eq!(
                is(given, false),
                Path::new(nydusbox::DEFAULT_STATE_DIR),
                "{given:?}"
            );
        }
        assert_eq!(
            is(Some("/run/user/7"), true),
            Path::new(nydusbox::DEFAULT_STATE_DIR)
        );
    }
}
