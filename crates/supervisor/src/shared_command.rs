//! A mount command as the supervisor keeps it: one value for the books, the state and the request, encoded once.
//!
//! Its configuration may be long, and between a request and its effect it is compared, written down and sent. Pure.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use nydusbox_protocol::MountCommand;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

/// A mount command that never changes. Clones share it, and its JSON form.
#[derive(Clone)]
pub(crate) struct SharedCommand(Arc<Encoded>);

struct Encoded {
    command: MountCommand,
    json: OnceLock<Box<RawValue>>,
}

impl SharedCommand {
    /// Its JSON form, as a request's body has it.
    pub(crate) fn json(&self) -> &str {
        self.raw().get()
    }

    /// The same with a change.
    pub(crate) fn with(&self, change: impl FnOnce(&mut MountCommand)) -> Self {
        let mut command = self.0.command.clone();
        change(&mut command);
        command.into()
    }

    fn raw(&self) -> &RawValue {
        let encode =
            || to_raw_value(&self.0.command).expect("text, numbers and lists of them have a JSON form");
        self.0.json.get_or_init(encode)
    }
}

impl From<MountCommand> for SharedCommand {
    fn from(command: MountCommand) -> Self {
        let json = OnceLock::new();
        Self(Arc::new(Encoded { command, json }))
    }
}

impl Deref for SharedCommand {
    type Target = MountCommand;

    fn deref(&self) -> &MountCommand {
        &self.0.command
    }
}

impl PartialEq for SharedCommand {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.command == other.0.command
    }
}

impl Eq for SharedCommand {}

impl fmt::Debug for SharedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // MountCommand's own Debug leaves the configuration out; the JSON form has it.
        self.0.command.fmt(f)
    }
}

impl Serialize for SharedCommand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedCommand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        MountCommand::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_the_command_is_and_shown_without_its_configuration() {
        let command = MountCommand::rafs("/boot", "{\"auth\":\"c2VjcmV0\"}");
        let shared = SharedCommand::from(command.clone());
        let plain = serde_json::to_string(&[&command]).unwrap();
        assert_eq!(serde_json::to_string(&[&shared]).unwrap(), plain);
        assert_eq!(format!("[{}]", shared.json()), plain);
        let [read] = serde_json::from_str::<[SharedCommand; 1]>(&plain).unwrap();
        assert_eq!(read, shared);
        assert_eq!(format!("{shared:?}"), format!("{command:?}"));
    }

    #[test]
    fn a_changed_one_is_another_and_is_encoded_anew() {
        let command = SharedCommand::from(MountCommand::passthrough("/a"));
        let json = command.json().to_owned();
        let changed = command.with(|command| command.source = "/b".into());
        assert_ne!(changed, command);
        assert_ne!(changed.json(), json);
        assert_eq!(command.json(), json);
    }
}
