//! Saving a machine that has booted and waits, as a template; it goes on afterwards.
//!
//! QEMU stops the guest for the end of a migration, and lets it go on by itself if that fails. So it does fail: the state
//! comes through a pipe that holds next to nothing, behind it comes a description of the state for people, and when that
//! begins we have all we need. While we then copy the memory, QEMU waits for its reader, and when we close the pipe, or
//! are killed, the guest goes on. After a migration that completes, nobody but us would let it.
//!
//! The format is that of `migration/savevm.c`: sections, a byte 0, and then a byte 6, the length of the description in
//! four bytes, most significant first, and the description, which is JSON.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::pipe::fcntl_setpipe_size;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::qmp::{Event, Qmp, QmpError};
use crate::template::{Slot, memory};

/// The least a pipe can hold.
const PIPE_LEN: usize = 4096;

/// The byte that ends the sections, and the one that begins the description.
const END: u8 = 0;
const DESCRIPTION: u8 = 6;
/// What stands before a description: both bytes and its length.
const DESCRIPTION_HEAD_LEN: usize = 6;
/// As much of a description as shows that it is one.
const DESCRIPTION_BEGIN_LEN: usize = 32;

/// Why there is no template; the machine goes on nevertheless, unless it is [`QmpError::Closed`].
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("cannot write the template: {0}")]
    Write(io::Error),
    #[error("cannot read the machine's state: {0}")]
    Read(io::Error),
    #[error("QEMU did not save the machine")]
    Failed,
}

/// How a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Migration {
    UnderWay,
    Completed,
    Failed,
}

impl Migration {
    fn after(self, event: &Event) -> Self {
        match event.data["status"].as_str() {
            _ if event.name != "MIGRATION" => self,
            Some("completed") => Self::Completed,
            Some("failed" | "cancelled") => Self::Failed,
            _ => self,
        }
    }
}

/// Saves it in `slot`. `memory` is the guest's.
pub(super) async fn save(qmp: &mut Qmp, slot: Slot, memory: Arc<File>) -> Result<(), SaveError> {
    let since = Instant::now();
    let (reader, writer) = io::pipe().map_err(SaveError::Read)?;
    fcntl_setpipe_size(&writer, PIPE_LEN).map_err(|errno| SaveError::Read(errno.into()))?;
    let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(SaveError::Read)?;
    qmp.set_up_migration().await?;
    qmp.give(&writer, "state").await?;
    drop(writer);
    qmp.execute("migrate", json!({ "uri": "fd:state" })).await?;

    let mut migration = Migration::UnderWay;
    let saved = write(qmp, &mut migration, &mut reader, slot, memory).await;
    // Who waits for its reader finds it gone, and fails.
    drop(reader);
    while migration == Migration::UnderWay {
        migration = migration.after(&qmp.event().await?);
    }
    // Where there was no description to be stopped at.
    if migration == Migration::Completed {
        qmp.execute("cont", json!({})).await?;
    }
    let (slot, state) = saved?;
    slot.finish(&state).map_err(SaveError::Write)?;
    tracing::debug!(took = ?since.elapsed(), ?migration, "saved the machine as a template");
    Ok(())
}

async fn write(
    qmp: &mut Qmp,
    migration: &mut Migration,
    reader: &mut pipe::Receiver,
    slot: Slot,
    memory: Arc<File>,
) -> Result<(Slot, Vec<u8>), SaveError> {
    let mut state = Vec::new();
    let mut stopped = false;
    let mut looked_at = 0;
    let complete = loop {
        tokio::select! {
            read = reader.read_buf(&mut state) => match read.map_err(SaveError::Read)? {
                0 if stopped => break state,
                0 => return Err(SaveError::Failed),
                // Before the guest is stopped there is only memory, in which there may be anything.
                _ if !stopped => looked_at = state.len(),
                _ => {
                    if let Some(end) = end_of_sections(&state, looked_at) {
                        state.truncate(end);
                        break closed(state);
                    }
                    looked_at = state.len().saturating_sub(DESCRIPTION_HEAD_LEN + DESCRIPTION_BEGIN_LEN);
                }
            },
            event = qmp.event(), if !stopped => {
                let event = event?;
                *migration = migration.after(&event);
                stopped = event.name == "STOP";
            }
        }
    };
    let slot = tokio::task::spawn_blocking(move || {
        let len = memory.metadata()?.len();
        memory::copy(&memory, &slot.memory(len)?)?;
        io::Result::Ok(slot)
    })
    .await
    .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    .map_err(SaveError::Write)?;
    Ok((slot, complete))
}

/// Where the sections end, that byte included, if the description has begun. What is before `from` was looked at.
fn end_of_sections(state: &[u8], from: usize) -> Option<usize> {
    let rest = state.get(from..)?;
    let at = rest
        .windows(DESCRIPTION_HEAD_LEN + DESCRIPTION_BEGIN_LEN)
        .position(|window| {
            let (head, text) = window.split_at(DESCRIPTION_HEAD_LEN);
            // No description has 16 MiB.
            head.starts_with(&[END, DESCRIPTION, 0])
                && text.starts_with(b"{\"")
                && text.iter().all(|byte| (b' '..=b'~').contains(byte))
        })?;
    Some(from + at + 1)
}

/// Sections with a description behind them that says nothing: whoever reads them expects one.
fn closed(mut sections: Vec<u8>) -> Vec<u8> {
    let nothing = b"{}";
    sections.push(DESCRIPTION);
    sections.extend([0, 0, 0, nothing.len().to_le_bytes()[0]]);
    sections.extend(nothing);
    sections
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = br#"{"page_size": 4096, "devices": [{"name": "timer"}]}"#;

    fn stream(sections: &[u8]) -> Vec<u8> {
        let mut stream = sections.to_vec();
        stream.extend([END, DESCRIPTION, 0, 1, 0, 0]);
        stream.extend(TEXT);
        stream
    }

    proptest! {
        /// However it comes, the sections are all there is before the description, and found as soon as it has begun.
        #[test]
        fn sections_end_where_the_description_begins(
            sections in proptest::collection::vec(prop_oneof![Just(END), Just(DESCRIPTION), Just(b'{'), any::<u8>()], 0..200),
            step in 1usize..50,
        ) {
            let stream = stream(&sections);
            let mut looked_at = 0;
            let mut seen = 0;
            let found = loop {
                seen = (seen + step).min(stream.len());
                if let Some(end) = end_of_sections(&stream[..seen], looked_at) {
                    break end;
                }
                prop_assert!(seen < stream.len());
                looked_at = seen.saturating_sub(DESCRIPTION_HEAD_LEN + DESCRIPTION_BEGIN_LEN);
            };
            prop_assert_eq!(found, sections.len() + 1);
            prop_assert!(seen <= sections.len() + DESCRIPTION_HEAD_LEN + DESCRIPTION_BEGIN_LEN + step);
        }
    }

    #[test]
    fn what_is_like_a_description_is_none() {
        for like in [
            &b"\0\x06\x01\0\0\0{\"page_size\": 4096, \"devices\": []}"[..],
            b"\0\x06\0\0\0\x20{\"page_size\": 4096,\n \"devices\": []}",
            b"\0\x06\0\0\0\x20[\"page_size\", 4096, \"devices\", []]",
            b"\0\x05\0\0\0\x20{\"page_size\": 4096, \"devices\": []}",
            b"",
        ] {
            assert_eq!(end_of_sections(like, 0), None);
        }
        let whole = closed(b"sections\0".to_vec());
        assert_eq!(whole, b"sections\0\x06\0\0\0\x02{}");
    }

    #[test]
    fn a_migration_is_under_way_until_it_has_ended() {
        let event = |name: &str, status: &str| Event {
            name: name.to_owned(),
            data: json!({ "status": status }),
        };
        for (name, status, expected) in [
            ("MIGRATION", "active", Migration::UnderWay),
            ("MIGRATION", "completed", Migration::Completed),
            ("MIGRATION", "failed", Migration::Failed),
            ("STOP", "failed", Migration::UnderWay),
        ] {
            assert_eq!(Migration::UnderWay.after(&event(name, status)), expected);
        }
        let answer = serde_json::from_str::<Event>(r#"{"event": "STOP"}"#).unwrap();
        assert_eq!(Migration::Failed.after(&answer), Migration::Failed);
    }
}
