//! A mount namespace for a test, so that whatever it mounts goes with its thread.

use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

/// Puts this thread, and the threads and processes it starts from now on, into a mount namespace of their own.
/// False, said aloud, where this is not permitted.
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

macro_rules! own_mounts_or_skip {
    () => {
        if !crate::mounts::own_mounts() {
            return;
        }
    };
}
pub(crate) use own_mounts_or_skip;

/// Mount points of this thread's namespace at and below a directory.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
    table
        .lines()
        .map(at)
        .filter(|m| Path::new(m).starts_with(dir))
        .collect()
}
