//! What a thread keeps for itself.

use rustix::io::Result;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread its own umask and working directory; the other threads keep theirs.
pub(crate) fn own_umask() -> Result<()> {
    // SAFETY: only `CLONE_FILES` can do harm, because it would separate descriptor tables; it is not asked for.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}
