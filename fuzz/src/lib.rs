//! What is fuzzed: parsers of what others hand us, with what has to hold whatever they are given.
//!
//! A target takes bytes and panics when a promise is broken. libFuzzer drives them (`cargo xtask fuzz`); the ordinary
//! tests drive them for a moment, from the same seeds (`tests/short.rs`). Inputs that are base64 of JSON are taken
//! decoded too: random bytes would hardly ever get past the encoding.

#![forbid(unsafe_code)]

mod calm;
mod daemon;
mod foreign;
mod inputs;
mod overlay;
mod state;

pub use daemon::{mount, program};
pub use foreign::{archive, blob, bootstrap, clean_up, documents, layer, registry_texts};
pub use inputs::{extra_option, rootfs_mount, virtual_volume};
pub use overlay::overlay_options;
pub use state::state_document;

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// That of its seeds' directory and of its program.
    pub name: &'static str,
    /// Takes bytes, panics when a promise is broken.
    pub run: fn(&[u8]),
    /// How often the ordinary tests run it: for a second or so.
    pub rounds: usize,
}

/// Every target.
pub const TARGETS: [Target; 13] = [
    target("extra_option", extra_option, 4000),
    target("virtual_volume", virtual_volume, 4000),
    target("rootfs_mount", rootfs_mount, 4000),
    target("overlay_options", overlay_options, 4000),
    target("state_document", state_document, 4000),
    target("bootstrap", bootstrap, 400),
    target("mount", mount, 200),
    target("program", program, 4000),
    target("layer", layer, 400),
    target("blob", blob, 2000),
    target("archive", archive, 4000),
    target("documents", documents, 4000),
    target("registry_texts", registry_texts, 4000),
];

const fn target(name: &'static str, run: fn(&[u8]), rounds: usize) -> Target {
    Target { name, run, rounds }
}
