//! The name of a run, which nobody else has while it lives, and what is left of runs that were killed.
//!
//! ```text
//! DATA_DIR/run/NAME/       what belongs to the run
//! DATA_DIR/run/NAME.lock   locked while it lives; gone when it is over, also where NAME is kept
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, open};

use super::{places, removal};
use crate::data_dir::DataDir;
use crate::error::Failure;

const LOCK: &str = "lock";

/// A name that is this run's. Dropped, it is anybody's again.
#[derive(Debug)]
pub(super) struct Claim {
    name: String,
    lock: PathBuf,
    /// Whether something is left that is for others to clear away.
    leaves_some: bool,
    _held: File,
}

impl Claim {
    /// Takes a name, after removing what was left by who was killed.
    pub(super) fn take(data_dir: &DataDir) -> Result<Self, Failure> {
        let runs = data_dir.runs();
        let failed = |e: io::Error| {
            Failure::new(&format!("use the directory {}", runs.display()), &e)
                .hint("give a writable place with --data-dir")
        };
        data_dir.make_runs().map_err(failed)?;
        clear(&runs);
        Self::in_dir(&runs).map_err(failed)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends it as if the run had been killed: what is left is cleared away by the next.
    pub(super) fn leave(mut self) {
        self.leaves_some = true;
    }

    /// The process' number makes it unique among those that live, but what is kept has one, too.
    pub(super) fn in_dir(runs: &Path) -> io::Result<Self> {
        let names = (1_u32..).map(|number| match number {
            1 => format!("run-{}", std::process::id()),
            _ => format!("run-{}-{number}", std::process::id()),
        });
        for name in names {
            let lock = runs.join(&name).with_extension(LOCK);
            if runs.join(&name).exists() {
                continue;
            }
            let held = match File::options().write(true).create_new(true).open(&lock) {
                Ok(held) => held,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            // Whoever clears may have found it before it was locked.
            if flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok() && fstat(&held)?.st_nlink > 0 {
                return Ok(Self {
                    name,
                    lock,
                    leaves_some: false,
                    _held: held,
                });
            }
        }
        unreachable!("there are as many names as one tries")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.leaves_some {
            return;
        }
        if let Err(error) = fs::remove_file(&self.lock) {
            tracing::warn!(lock = ?self.lock, %error, "cannot give a name back");
        }
    }
}

/// Removes what belongs to runs that are over and were not: they were killed. What can't be removed comes back, and is in
/// nobody's way. What is not of a run stays as it is: the directory may be anybody's.
pub(in crate::commands) fn clear(runs: &Path) -> Vec<(PathBuf, io::Error)> {
    let mut stay = Vec::new();
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    for lock in entries.map(|entry| entry.path()) {
        let is_lock = lock.extension().is_some_and(|extension| extension == LOCK);
        let is_of_a_run = lock.file_stem().and_then(OsStr::to_str).is_some_and(is_name);
        if !is_lock || !is_of_a_run {
            continue;
        }
        // A link is not ours, and a pipe would have us wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(held) = open(&lock, flags, Mode::empty()) {
            let left = lock.with_extension("");
            if let Err(error) = clear_one(&lock, &left, &held) {
                tracing::warn!(?left, %error, "cannot remove what a killed run has left");
                stay.push((left, error));
            }
        }
    }
    stay
}

/// `held` is a lock that was found at `lock`, and is of what is `left`.
fn clear_one(lock: &Path, left: &Path, held: &OwnedFd) -> io::Result<()> {
    if flock(held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    // If it is not there any longer, its run has ended in order meanwhile: what it left it has kept.
    let is_lock = fstat(held).is_ok_and(|stat| {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_file && stat.st_size == 0 && stat.st_nlink > 0
    });
    if !is_lock || !places::is_of_a_run(left) {
        return Ok(());
    }
    removal::remove(left)?;
    fs::remove_file(lock)?;
    tracing::info!(?left, "removed what a killed run has left");
    Ok(())
}

/// Whether a name is one that [`Claim::in_dir`] gives.
fn is_name(name: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().is_ok_and(|number| number.to_string() == text);
    name.strip_prefix("run-")
        .is_some_and(|rest| match rest.split_once('-') {
            None => number(rest),
            Some((process, nth)) => number(process) && number(nth),
        })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn names(runs: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(runs)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_lives_and_what_is_kept_stays_and_what_was_killed_goes() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        let living = Claim::in_dir(runs).unwrap();
        fs::create_dir(runs.join(living.name())).unwrap();
        let kept = Claim::in_dir(runs).unwrap();
        fs::create_dir(runs.join(kept.name())).unwrap();
        let kept_name = kept.name().to_owned();
        drop(kept);
        // As a killed one leaves it.
        fs::create_dir_all(runs.join("run-0/shared/c1")).unwrap();
        fs::write(runs.join("run-0.lock"), "").unwrap();
        // Before it had made anything.
        fs::write(runs.join("run-1.lock"), "").unwrap();
        clear(runs);
        let mut expected = [
            living.name().to_owned(),
            format!("{}.lock", living.name()),
            kept_name.clone(),
        ];
        expected.sort();
        assert_eq!(names(runs), expected);
        let next = Claim::in_dir(runs).unwrap();
        assert!(next.name() != living.name() && next.name() != kept_name);
    }

    #[test]
    fn what_was_kept_while_it_was_looked_at_stays() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::in_dir(dir.path()).unwrap();
        let kept = dir.path().join(claim.name());
        fs::create_dir(&kept).unwrap();
        let lock = claim.lock.clone();
        let found = open(&lock, OFlags::RDONLY, Mode::empty()).unwrap();
        drop(claim);
        clear_one(&lock, &kept, &found).unwrap();
        assert!(kept.exists());
    }

    /// `--data-dir` may name any directory, and many have one called `run`.
    #[test]
    fn what_is_not_of_a_run_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        let files = [
            "app.lock",
            "app/data",
            "run-1x.lock",
            "run-1x/shared/data",
            "run-01.lock",
            "run-01/shared/data",
            // Named like ours, and something else is in it.
            "run-2.lock",
            "run-2/data",
            "run-3-1.lock",
            "run-3-1/shared/data",
            "run-3-1/data",
            "run-4.lock/data",
            "run-4/shared/data",
        ];
        for name in files {
            let path = runs.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        // A lock of ours says nothing.
        fs::create_dir_all(runs.join("run-5/shared")).unwrap();
        fs::write(runs.join("run-5.lock"), "5").unwrap();
        // Whereas this is ours.
        fs::create_dir_all(runs.join("run-6-2/shared")).unwrap();
        fs::create_dir_all(runs.join("run-6-2/vm")).unwrap();
        fs::write(runs.join("run-6-2/ca.pem"), "").unwrap();
        fs::write(runs.join("run-6-2.lock"), "").unwrap();
        clear(runs);
        for name in files {
            assert!(runs.join(name).exists(), "{name}");
        }
        assert!(runs.join("run-5/shared").exists());
        assert!(!names(runs).iter().any(|name| name.starts_with("run-6")));
    }
}
