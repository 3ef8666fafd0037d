//! For tests: a mount namespace, so that whatever a test mounts goes with its thread.

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

/// Puts this thread, and what it starts from now on, into a mount namespace of its own. False, said aloud, where this is
/// not permitted.
pub(crate) fn own_mounts() -> bool {
    #[expect(
        deprecated,
        reason = "a mount namespace is no table of descriptors; its successor is unsafe"
    )]
    let own = rustix::thread::unshare(UnshareFlags::NEWNS)
        .and_then(|()| mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC));
    match own {
        Ok(()) => true,
        Err(errno) => {
            assert!(
                std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none(),
                "mount: {errno}"
            );
            println!("skipped: no mount namespace of its own: {errno}");
            false
        }
    }
}
