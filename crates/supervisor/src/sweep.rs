//! Finds and removes what any crash has left in a state directory.
//!
//! A sandbox whose supervisor lives is left alone: its directory's lock says so. Of the others the daemon is killed
//! (one that should go on is for [`crate::Sandbox::adopt`]), binds and cgroup are undone, and the files with names of
//! ours are removed. What has another name, another owner, or a document that is not understood is reported and
//! stays, and so does every directory in which nothing shows that it is a sandbox's, as it is. Nothing in a snapshot or in a shared directory is removed but empty directories that were made for a bind.

use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;
use serde::Serialize;

use crate::dir::{DirError, Entered, SandboxDir};
use crate::error::chain;
use crate::remains::Remains;

/// What was found in a state directory, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[must_use = "it says what could not be removed"]
pub struct SweepReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The sandboxes, in the order of their names.
    pub sandboxes: Vec<SweptSandbox>,
    /// What is no sandbox's directory; left alone.
    pub foreign: Vec<PathBuf>,
}

/// One sandbox's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SweptSandbox {
    /// The sandbox.
    pub id: SandboxId,
    /// What became of it.
    pub verdict: SweepVerdict,
    /// Processes of its daemon that were, or would be, killed.
    pub processes: Vec<u32>,
    /// Binds that were, or would be, undone.
    pub binds: Vec<PathBuf>,
    /// What is left, and why.
    pub leftovers: Vec<String>,
}

/// What became of a sandbox's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SweepVerdict {
    /// Its supervisor lives; left alone.
    InUse {
        /// The supervisor's process id, if it could be read.
        supervisor: Option<u32>,
    },
    /// Nobody's. In a dry run it would be removed, otherwise it was, but for `leftovers`.
    Abandoned,
    /// It cannot be told what belongs to it; left alone.
    Kept {
        /// Why.
        reason: String,
    },
}

impl SweepReport {
    /// Whether nothing is left that should not be there.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let fine = |swept: &SweptSandbox| match swept.verdict {
            SweepVerdict::InUse { .. } => true,
            SweepVerdict::Abandoned => swept.leftovers.is_empty() && !self.dry_run,
            SweepVerdict::Kept { .. } => false,
        };
        self.sandboxes.iter().all(fine) && self.foreign.is_empty()
    }
}

/// Sweeps a state directory; with `dry_run` only looks. One that does not exist is clean.
///
/// Blocks: reading `/proc` takes milliseconds, and a killed process is waited for, up to five seconds each.
///
/// # Errors
/// Only when the directory cannot be read; what is wrong with a sandbox is in the report.
pub fn sweep(state_dir: impl AsRef<Path>, dry_run: bool) -> io::Result<SweepReport> {
    let state_dir = std::path::absolute(state_dir)?;
    let _span = tracing::info_span!("sweep", state_dir = %state_dir.display(), dry_run).entered();
    let mut report = SweepReport {
        dry_run,
        sandboxes: Vec::new(),
        foreign: Vec::new(),
    };
    let entries = match std::fs::read_dir(&state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(report),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let id = entry
            .file_name()
            .to_str()
            .and_then(|name| SandboxId::new(name).ok());
        match id {
            Some(id) if entry.file_type()?.is_dir() => match sweep_one(id, &entry.path(), dry_run) {
                Swept::Gone => {}
                Swept::Foreign => report.foreign.push(entry.path()),
                Swept::Sandbox(swept) => report.sandboxes.push(swept),
            },
            _ => report.foreign.push(entry.path()),
        }
    }
    report.sandboxes.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
    report.foreign.sort();
    Ok(report)
}

/// What a directory was.
enum Swept {
    Sandbox(SweptSandbox),
    /// It went while we looked.
    Gone,
    Foreign,
}

fn sweep_one(id: SandboxId, path: &Path, dry_run: bool) -> Swept {
    let mut swept = SweptSandbox {
        id,
        verdict: SweepVerdict::Abandoned,
        processes: Vec::new(),
        binds: Vec::new(),
        leftovers: Vec::new(),
    };
    let entered = match dry_run {
        true => SandboxDir::look(path),
        false => SandboxDir::enter(path),
    };
    let remains = match entered {
        Ok(Entered::Missing) => return Swept::Gone,
        Ok(Entered::Locked(dir)) => Remains::inspect(dir),
        Err(error) => Err(error),
    };
    match remains {
        Ok(remains) => {
            swept.processes = remains.processes().collect();
            swept.binds = remains.binds().collect();
            let left = match dry_run {
                true => Vec::new(),
                false => remains.clear(),
            };
            swept.leftovers = left.iter().map(|left| chain(left)).collect();
        }
        Err(DirError::Foreign { .. }) => return Swept::Foreign,
        Err(DirError::Held { holder, .. }) => swept.verdict = SweepVerdict::InUse { supervisor: holder },
        Err(error) => {
            swept.verdict = SweepVerdict::Kept {
                reason: chain(&error),
            }
        }
    }
    Swept::Sandbox(swept)
}
