//! RAFS as nydus has it on disk: blobs that are written chunk by chunk, bootstraps of whole trees, and both read
//! back.
//!
//! The formats are those of nydus' crates; what is our own is in which order things happen. Never knows of tar or
//! OCI. Read `rafs/blob.rs` for what is said of a blob, then `rafs/chunks.rs` and `rafs/bootstrap.rs`.

pub(crate) mod blob;
pub(crate) mod blob_bytes;
pub(crate) mod bootstrap;
mod bounds;
pub(crate) mod chunks;
pub(crate) mod compress;
pub(crate) mod contexts;
pub(crate) mod load;
pub(crate) mod prefetch;
pub(crate) mod reference;
pub(crate) mod tail;

use std::error::Error as StdError;
use std::thread;

/// What nydus' crates fail with.
pub(crate) type NydusError = Box<dyn StdError + Send + Sync>;

/// For a tree as deep as Linux can name one: nydus' builder walks it by recursion. Only what is used is there.
const STACK_BYTES: usize = 256 << 20;

/// The name of threads that nydus' code runs on. What it panics with there is an error of whoever called it.
pub const NYDUS_THREAD: &str = "nydus";

/// Nydus' code panicked, as it does on some of what it is not prepared for.
#[derive(Debug, thiserror::Error)]
#[error("what it says cannot be")]
pub(crate) struct Panicked;

/// Runs nydus' code on a thread of its own: with stack enough for deep trees, and so that a panic in it is an
/// error here.
pub(crate) fn with_nydus<T: Send>(
    work: impl FnOnce() -> Result<T, NydusError> + Send,
) -> Result<T, NydusError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(NYDUS_THREAD.to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(Box::new(Panicked)))
    })
}
