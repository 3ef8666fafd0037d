//! What is fuzzed: parsers of what others hand us, with what has to hold whatever they are given.
//!
//! A target takes bytes and panics when a promise is broken. libFuzzer drives them (`cargo xtask fuzz`); the ordinary
//! tests drive them for a moment, from the same seeds (`tests/short.rs`). Inputs that are base64 of JSON are taken
//! decoded too: random bytes would hardly ever get past the encoding.

#![forbid(unsafe_code)]

mod inputs;
mod overlay;
mod state;

pub use inputs::{extra_option, rootfs_mount, virtual_volume};
pub use overlay::overlay_options;
pub use state::state_document;

/// A target: takes bytes, panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its seeds' directory and of its program.
pub const TARGETS: [(&str, Target); 5] = [
    ("extra_option", extra_option),
    ("virtual_volume", virtual_volume),
    ("rootfs_mount", rootfs_mount),
    ("overlay_options", overlay_options),
    ("state_document", state_document),
];
