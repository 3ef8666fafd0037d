//! What a boot needs that is not in this repository: a genuine daemon, a guest to boot, QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_vmm::GuestAssets;

/// The path of the genuine `peer` and the guest. `None`, with the reason printed, where something is absent; a
/// panic instead where `NYDUSBOX_REQUIRE_PEERS=1` says that all of it is there.
pub(crate) fn find(peer: &str) -> Option<(PathBuf, GuestAssets)> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let from =
        |name, default: &str| std::env::var_os(name).map_or_else(|| target.join(default), PathBuf::from);
    let program = from("NYDUSBOX_PEERS", "peers/bin").join(peer);
    let lacking = match GuestAssets::find(&from("NYDUSBOX_GUEST_ROOT", "guest")) {
        Err(error) => error.to_string(),
        Ok(_) if !program.exists() => format!("there is no {}", program.display()),
        Ok(_)
            if Command::new("qemu-system-x86_64")
                .arg("-version")
                .output()
                .is_err() =>
        {
            "there is no qemu-system-x86_64".to_owned()
        }
        Ok(assets) => return Some((program, assets)),
    };
    let required = std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_some_and(|v| v == "1");
    assert!(!required, "peers are required: {lacking}");
    eprintln!("skipped: {lacking}");
    None
}
