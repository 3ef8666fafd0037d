//! What a sandbox leaves written down, so that it can be taken over or cleaned up after its supervisor was killed.
//!
//! - [`document`]: `state.json` as a value; pure.
//! - [`amendment`]: what has changed in it, in one line; pure.
//! - [`store`]: that file, replaced atomically.
//! - [`journal`]: both, for a sandbox this process supervises.
//! - [`identity`], [`holders`]: which processes are a sandbox's daemon.
//!
//! The document is written before what it promises is done: before the daemon is spawned, before a mount, a bind or
//! their undoing is begun, before a signal is sent. A reader therefore finds at most more in it than there is, and
//! asks the daemon and the kernel which of it is true. Next: [`crate::adopt`], [`crate::sweep`].

mod amendment;
mod document;
mod holders;
mod identity;
mod journal;
mod os_text;
mod store;

pub(crate) use document::{MountRecord, PhaseRecord, ProgramRecord, Settings, millis};
pub use document::{StateDocument, StateError};
pub(crate) use holders::{DAEMON_LOCK, DaemonLock, Holder, holders, probe, take};
pub(crate) use identity::{DaemonRecord, boot_id, is_dead};
pub(crate) use journal::{Books, Journal};
pub(crate) use os_text::OsText;
pub use store::STATE;
pub(crate) use store::{STATE_NEW, read};
