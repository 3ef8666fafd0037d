//! The directories of a run: made before anything is started, and removed when all is over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::ContainerId;

use crate::data_dir::DataDir;
use crate::error::Failure;

/// In the run's directory: what the daemon shows at `/containers`, what is the machine's, and what the daemon trusts.
const SHARED: &str = "shared";
const VM: &str = "vm";
const CERTIFICATES: &str = "ca.pem";

/// Where a run has what it has.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Everything on disk that belongs to this run only.
    run_dir: PathBuf,
    /// The machine's.
    pub(super) vm_dir: PathBuf,
    /// What the daemon shows at `/containers`.
    pub(super) shared_dir: PathBuf,
    /// The snapshot's two directories, for the overlay.
    snapshot_dirs: [PathBuf; 2],
    pub(super) cache_dir: PathBuf,
    /// What the daemon trusts, and the file where it looks for that.
    certificates: Option<(PathBuf, String)>,
}

impl Places {
    pub(super) fn new(
        data_dir: &DataDir,
        name: &str,
        container: &ContainerId,
        trusted: Option<String>,
    ) -> Self {
        let run_dir = data_dir.run(name);
        let shared_dir = run_dir.join(SHARED);
        let snapshot_dir = shared_dir.join(container.as_str()).join("snapshotdir");
        Self {
            vm_dir: run_dir.join(VM),
            shared_dir,
            snapshot_dirs: [snapshot_dir.join("fs"), snapshot_dir.join("work")],
            cache_dir: data_dir.cache(),
            certificates: trusted.map(|text| (run_dir.join(CERTIFICATES), text)),
            run_dir,
        }
    }

    /// The file with what the daemon trusts, if that is not just what everybody does.
    pub(super) fn certificates(&self) -> Option<&Path> {
        self.certificates.as_ref().map(|(file, _)| file.as_path())
    }

    /// Makes them. If that fails, what was made is gone again.
    pub(super) fn make(&self) -> Result<(), Failure> {
        let wanted = self.snapshot_dirs.iter().chain([&self.cache_dir, &self.vm_dir]);
        for dir in wanted {
            if let Err(e) = fs::create_dir_all(dir) {
                let _ = self.remove();
                return Err(Failure::new(&format!("create {}", dir.display()), &e)
                    .hint("give a writable place with --data-dir"));
            }
        }
        if let Some((file, text)) = &self.certificates
            && let Err(e) = fs::write(file, text)
        {
            let _ = self.remove();
            return Err(Failure::new(&format!("write {}", file.display()), &e));
        }
        Ok(())
    }

    /// Leaves them, and says so.
    pub(super) fn keep(&self) {
        eprintln!("kept: {}", self.run_dir.display());
    }

    /// Removes what belongs to this run only. Nothing is ever mounted in there.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_dir_all(&self.run_dir) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Failure::new(&format!("remove {}", self.run_dir.display()), &e)),
        }
    }
}

/// Whether nothing is there but what a run makes.
pub(super) fn is_of_a_run(dir: &Path) -> bool {
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return false,
        Err(e) => return e.kind() == io::ErrorKind::NotFound,
    }
    let names: io::Result<Vec<_>> =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    let ours = [SHARED, VM, CERTIFICATES];
    names.is_ok_and(|names| names.iter().all(|name| ours.iter().any(|our| name == our)))
}
