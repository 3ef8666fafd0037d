//! The directories of a run: made before anything is started, and removed when all is over. Only then is the run's name
//! given back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::ContainerId;

use super::claim::Claim;
use super::removal;
use crate::data_dir::DataDir;
use crate::error::{Failure, say};

/// In the run's directory: what the daemon shows at `/containers`, what is the machine's, and what the daemon trusts.
const SHARED: &str = "shared";
const VM: &str = "vm";
const CERTIFICATES: &str = "ca.pem";

/// Where a run has what it has. Dropped, there is nothing there.
#[derive(Debug)]
pub(super) struct Places {
    /// Until they are removed, or kept.
    claim: Option<Claim>,
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
        claim: Claim,
        container: &ContainerId,
        trusted: Option<String>,
    ) -> Self {
        let run_dir = data_dir.run(claim.name());
        let shared_dir = run_dir.join(SHARED);
        let snapshot_dir = shared_dir.join(container.as_str()).join("snapshotdir");
        Self {
            claim: Some(claim),
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

    /// Makes them.
    pub(super) fn make(&self) -> Result<(), Failure> {
        let wanted = self.snapshot_dirs.iter().chain([&self.cache_dir, &self.vm_dir]);
        for dir in wanted {
            if let Err(e) = fs::create_dir_all(dir) {
                return Err(Failure::new(&format!("create {}", dir.display()), &e)
                    .hint("give a writable place with --data-dir"));
            }
        }
        if let Some((file, text)) = &self.certificates
            && let Err(e) = fs::write(file, text)
        {
            return Err(Failure::new(&format!("write {}", file.display()), &e));
        }
        Ok(())
    }

    /// Leaves them, and says so.
    pub(super) fn keep(mut self) {
        self.claim = None;
        say(format_args!("kept: {}", self.run_dir.display()));
    }

    /// Removes what belongs to this run only. Nothing is ever mounted in there.
    pub(super) fn remove(mut self) -> Result<(), Failure> {
        self.clear()
            .map_err(|e| Failure::new(&format!("remove {}", self.run_dir.display()), &e))
    }

    fn clear(&mut self) -> io::Result<()> {
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        removal::remove(&self.run_dir).inspect_err(|_| claim.leave())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(dir = ?self.run_dir, %error, "cannot remove what belongs to a run");
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::data_dir::DataDirArg;

    fn places(dir: &Path) -> (PathBuf, Places) {
        let data_dir = Some(dir.to_owned());
        let data_dir = DataDirArg { data_dir }.resolve().unwrap();
        let claim = Claim::take(&data_dir).unwrap();
        let container = ContainerId::new("c1").unwrap();
        let places = Places::new(&data_dir, claim, &container, Some("trusted".to_owned()));
        places.make().unwrap();
        assert!(is_of_a_run(&places.run_dir));
        (data_dir.runs(), places)
    }

    fn left(runs: &Path) -> usize {
        fs::read_dir(runs).unwrap().count()
    }

    #[test]
    fn whatever_ends_a_run_removes_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (runs, removed) = places(dir.path());
        assert_eq!(left(&runs), 2, "a directory and its lock");
        removed.remove().unwrap();
        assert_eq!(left(&runs), 0);
        let (_, dropped) = places(dir.path());
        drop(dropped);
        assert_eq!(left(&runs), 0);
        let (_, unwound) = places(dir.path());
        let unwinding = AssertUnwindSafe(|| {
            let _places = unwound;
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(catch_unwind(unwinding).is_err());
        assert_eq!(left(&runs), 0);
        let (_, kept) = places(dir.path());
        kept.keep();
        assert_eq!(left(&runs), 1);
    }

    #[test]
    fn what_cannot_be_removed_is_left_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (runs, places) = places(dir.path());
        let (run_dir, aside) = (places.run_dir.clone(), dir.path().join("aside"));
        // A file is no directory, not even for root.
        fs::rename(&run_dir, &aside).unwrap();
        fs::write(&run_dir, "").unwrap();
        assert!(places.remove().is_err());
        fs::remove_file(&run_dir).unwrap();
        fs::rename(&aside, &run_dir).unwrap();
        crate::commands::run::claim::clear(&runs);
        assert_eq!(left(&runs), 0);
    }
}
