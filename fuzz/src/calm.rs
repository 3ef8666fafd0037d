//! What becomes of a panic while a target runs.
//!
//! nydus' crates panic on some of what they are given. That is caught where they are called, and what is fuzzed is that
//! it is; a panic of ours is a broken promise even where it would be caught.

use std::panic;
use std::process;
use std::sync::Once;

/// Panics of other crates say nothing from now on; one of ours ends the process. libFuzzer's own hook would end it on
/// any.
pub(crate) fn calm() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            // Those of the workspace are known by relative paths.
            let ours = info.location().is_some_and(|at| !at.file().starts_with('/'));
            if ours {
                eprintln!("{info}");
                process::abort();
            }
        }));
    });
}
