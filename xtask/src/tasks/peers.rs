//! The genuine programs that ours are compared with or tested by, installed by cargo below `target/peers`.

use std::path::PathBuf;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{Workspace, remove};

struct Peer {
    package: &'static str,
    version: &'static str,
    features: &'static str,
    programs: &'static [&'static str],
}

const PEERS: [Peer; 4] = [
    Peer {
        package: "nydus-rs",
        version: "2.2.0",
        features: "virtiofs",
        programs: &["nydusd", "nydus-image", "nydusctl"],
    },
    Peer {
        package: "virtiofsd",
        version: "1.14.0",
        features: "",
        programs: &["virtiofsd"],
    },
    Peer {
        package: "pjdfstest",
        version: "0.2.2",
        features: "",
        programs: &["pjdfstest"],
    },
    Peer {
        package: "fsx",
        version: "0.3.2",
        features: "",
        programs: &["fsx"],
    },
];

/// The directory of the programs; they are installed when they aren't there in the right version.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf, TaskError> {
    let root = workspace.peers();
    let bin = root.join("bin");
    // The programs themselves don't know their version: built from a package, nydusd says "unknown".
    let installed = Cmd::cargo().words("install --list --root").arg(&root).output()?;
    for peer in PEERS {
        let listed = installed
            .lines()
            .any(|line| line.trim_end_matches(':') == format!("{} v{}", peer.package, peer.version));
        if listed && peer.programs.iter().all(|program| bin.join(program).exists()) {
            continue;
        }
        debian::ensure(&[debian::BUILD, debian::VIRTIOFSD])?;
        eprintln!(
            "xtask: installing {} {} below target/peers (once)",
            peer.package, peer.version
        );
        let build = root.join("build");
        let done = Cmd::cargo()
            .args([
                "install",
                peer.package,
                "--version",
                peer.version,
                "--locked",
                "--force",
            ])
            .args(["--features", peer.features])
            .arg("--root")
            .arg(&root)
            .arg("--target-dir")
            .arg(&build)
            .shown();
        remove(&build)?;
        done?;
    }
    Ok(bin)
}
