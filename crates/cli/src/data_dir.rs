//! Where data is kept that outlives sandboxes: images, and what daemons have fetched of them.
//!
//! Owns the default place and the names inside.

use std::path::PathBuf;

use clap::Args;

use crate::error::Failure;

/// Where a command's data is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirArg {
    /// Directory for images, the blob cache and the guest's writes
    /// [default: /var/lib/nydusbox for root, else $XDG_DATA_HOME/nydusbox]
    #[arg(long, value_name = "DIR", env = "NYDUSBOX_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
}

/// The data directory, absolute.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDirArg {
    /// The directory given, or the user's default.
    pub(crate) fn resolve(self) -> Result<DataDir, Failure> {
        let path = self.data_dir.unwrap_or_else(default);
        std::path::absolute(&path)
            .map(DataDir)
            .map_err(|e| Failure::new(&format!("use the data directory {}", path.display()), &e))
    }
}

impl DataDir {
    /// The image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// What daemons have fetched, by blob.
    pub(crate) fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Machines that were booted once.
    pub(crate) fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    /// What belongs to one run each.
    pub(crate) fn runs(&self) -> PathBuf {
        self.0.join("run")
    }

    /// What belongs to one run only.
    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.runs().join(name)
    }
}

fn default() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/nydusbox".into();
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("nydusbox")
}
