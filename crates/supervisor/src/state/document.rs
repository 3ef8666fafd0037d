//! `state.json` as a value: everything needed to take a sandbox over, or to clean it up.
//!
//! Pure: bytes to value and back. In a file it may have amendments after it ([`super::amendment`]). It holds what must not be shown (image configurations carry credentials, so may
//! the program's environment), so its `Debug` leaves those out and nothing prints it. Unknown fields are ignored; a
//! version that is not known is refused, because what a newer supervisor promised in it cannot be honoured.

use std::fmt;
use std::time::Duration;

use nydusbox_protocol::{LogLevel, MountPoint, SandboxId};
use serde::{Deserialize, Serialize};
use serde_json::Deserializer;

use super::amendment::Amendment;
use super::identity::DaemonRecord;
use super::os_text::OsText;
use crate::binds::Bind;
use crate::config::DEFAULT_HEALTH_INTERVAL;
use crate::environment::Environment;
use crate::program::ProgramKind;
use crate::recovery::OnExit;
use crate::shared_command::SharedCommand;
use crate::slots::Slot;

/// The version that is written.
const VERSION: u32 = 1;

/// Why bytes are not a state document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Written by a newer version of this software.
    #[error("use the state of version {version}: this program knows versions up to {VERSION}")]
    Newer {
        /// Its version.
        version: u32,
    },
    /// Not a document of any version.
    #[error("understand the state (line {line}, column {column})")]
    Malformed {
        /// From 1. What the parser says is not repeated: it quotes values, and the state holds credentials.
        line: usize,
        /// From 1; 0 at the start of a line.
        column: usize,
    },
    /// An amendment after the document is of another one.
    #[error("understand the state: it has been amended as another one")]
    Foreign,
}

/// The state of one sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDocument {
    pub(super) version: u32,
    pub(crate) sandbox: SandboxId,
    pub(crate) phase: PhaseRecord,
    pub(crate) program: ProgramRecord,
    pub(crate) settings: Settings,
    /// The daemon's process, once it is known. Before that only the lock it inherits tells of it.
    pub(crate) daemon: Option<DaemonRecord>,
    /// The cgroup that is about to be made. Once it is, the daemon's record has it.
    pub(crate) cgroup: Option<OsText>,
    /// In the order of the daemon's slots.
    pub(crate) mounts: Vec<MountRecord>,
    /// Where the daemon begins to look for the next free slot, if that is known.
    #[serde(default)]
    pub(crate) next_slot: Option<Slot>,
    pub(crate) binds: Vec<BindRecord>,
}

/// What the supervisor was doing, or about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PhaseRecord {
    /// Starting; nobody has been told of the sandbox yet.
    Starting,
    /// Serving, or its daemon died and the sandbox still stands.
    Serving,
    /// Being stopped.
    Stopping,
}

/// The daemon's program.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramRecord {
    pub(crate) kind: ProgramKind,
    pub(crate) exe: OsText,
    pub(crate) args: Vec<OsText>,
    pub(crate) env: Vec<(OsText, OsText)>,
    /// As the daemon names it.
    pub(crate) version: String,
}

/// What the sandbox was configured with, as far as it is needed after the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) share: Option<String>,
    pub(crate) log_level: LogLevel,
    pub(crate) start_deadline_ms: u64,
    pub(crate) call_deadline_ms: u64,
    pub(crate) stop_grace_ms: u64,
    pub(crate) environment: Environment,
    #[serde(default)]
    pub(crate) on_exit: OnExit,
    /// `None` for never.
    #[serde(default = "default_health_interval_ms")]
    pub(crate) health_interval_ms: Option<u64>,
}

/// Of a document that does not say.
fn default_health_interval_ms() -> Option<u64> {
    Some(millis(DEFAULT_HEALTH_INTERVAL))
}

/// A duration as it is written down.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A mount that is there, or is being made or unmade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    pub(crate) at: MountPoint,
    pub(crate) command: SharedCommand,
    /// The daemon's slot it is in, once it is there and if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<Slot>,
    /// It is there, in a slot that is not known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) unplaced: bool,
    /// Commands it is being given, or was given without an answer, the last one last: it has one of them, or the old.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) replacements: Vec<SharedCommand>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl MountRecord {
    /// Whether the daemon had said that it is there.
    pub(crate) fn was_there(&self) -> bool {
        self.slot.is_some() || self.unplaced
    }
}

/// A bind that is there, or is being made or unmade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BindRecord {
    pub(crate) at: MountPoint,
    pub(crate) bind: Bind,
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl StateDocument {
    /// A document of the version that is written.
    pub(crate) fn new(sandbox: SandboxId, program: ProgramRecord, settings: Settings) -> Self {
        Self {
            version: VERSION,
            sandbox,
            phase: PhaseRecord::Starting,
            program,
            settings,
            daemon: None,
            cgroup: None,
            mounts: Vec::new(),
            next_slot: None,
            binds: Vec::new(),
        }
    }

    /// Reads a document with its amendments. The last of those may have been interrupted: then what it promises was
    /// not begun.
    ///
    /// # Errors
    /// [`StateError`] when the bytes are not one, or one of a version that is not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        // The version first: what else a newer document has may not fit at all.
        let header = Header::deserialize(&mut Deserializer::from_slice(bytes));
        let Header { version } = header.map_err(malformed)?;
        if version > VERSION {
            return Err(StateError::Newer { version });
        }
        let mut values = Deserializer::from_slice(bytes);
        let mut document = Self::deserialize(&mut values).map_err(malformed)?;
        while values.end().is_err() {
            let amendment = match Amendment::deserialize(&mut values) {
                Ok(amendment) => amendment,
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(malformed(error)),
            };
            if !amendment.apply(&mut document) {
                return Err(StateError::Foreign);
            }
        }
        Ok(document)
    }

    /// The document's bytes.
    ///
    /// # Errors
    /// None that can happen: every value has a JSON form.
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        serde_json::to_vec(self).map_err(malformed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: serde_json::Error) -> StateError {
    StateError::Malformed {
        line: error.line(),
        column: error.column(),
    }
}

impl fmt::Debug for StateDocument {
    /// Only what can be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDocument")
            .field("version", &self.version)
            .field("sandbox", &self.sandbox)
            .field("phase", &self.phase)
            .field("daemon", &self.daemon)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ProgramRecord {
    /// Leaves the environment and the arguments out: either may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramRecord")
            .field("kind", &self.kind)
            .field("exe", &self.exe)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
