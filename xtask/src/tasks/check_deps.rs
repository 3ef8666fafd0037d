//! Which crate may depend on which. ARCHITECTURE.md explains the arrows; this is what holds them.

use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::error::TaskError;
use crate::workspace::Workspace;

/// Every package of the workspace, with those of ours it may be built with. Some are built with fewer: the testkit has
/// nothing of the daemon's code.
///
/// Not in here for good: `nydusbox` with `nydusbox-fsd`. The library starts a program; that the program may be
/// the one it is linked into is known to the command only.
const ARROWS: [(&str, &[&str]); 10] = [
    ("nydusbox-protocol", &[]),
    ("nydusbox-rootfs", &[]),
    ("nydusbox-image", &[]),
    ("nydusbox-fsd", &["nydusbox-protocol"]),
    ("nydusbox", &["nydusbox-protocol", "nydusbox-rootfs"]),
    ("nydusbox-vmm", &["nydusbox-rootfs"]),
    (
        "nydusbox-cli",
        &[
            "nydusbox",
            "nydusbox-protocol",
            "nydusbox-rootfs",
            "nydusbox-fsd",
            "nydusbox-image",
            "nydusbox-vmm",
        ],
    ),
    (
        TESTKIT,
        &[
            "nydusbox",
            "nydusbox-protocol",
            "nydusbox-rootfs",
            "nydusbox-fsd",
            "nydusbox-image",
            "nydusbox-vmm",
        ],
    ),
    (
        "nydusbox-fuzz",
        &[
            "nydusbox",
            "nydusbox-protocol",
            "nydusbox-rootfs",
            "nydusbox-fsd",
            "nydusbox-image",
        ],
    ),
    ("xtask", &[]),
];

/// May see all, and is only ever a dev-dependency.
const TESTKIT: &str = "nydusbox-testkit";

/// One package's use of another, both ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
    dev: bool,
}

pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    let metadata = MetadataCommand::new()
        .manifest_path(workspace.root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(TaskError::Metadata)?;
    let packages: Vec<_> = metadata
        .packages
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let mut arrows = Vec::new();
    for package in &metadata.packages {
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| packages.contains(&dependency.name))
        {
            arrows.push(Arrow {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                dev: dependency.kind == DependencyKind::Development,
            });
        }
    }
    let complaints = check(&packages, &arrows);
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(TaskError::Dependencies(complaints))
    }
}

/// What is wrong, a line each.
fn check(packages: &[String], arrows: &[Arrow]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        if !ARROWS.iter().any(|(name, _)| name == package) {
            complaints.push(format!("    {package} is not in the table of xtask's check-deps"));
        }
    }
    for (name, _) in ARROWS {
        if !packages.iter().any(|package| package == name) {
            complaints.push(format!(
                "    {name} is in the table of xtask's check-deps and nowhere else"
            ));
        }
    }
    // A test may use whatever it likes; what is shipped may not.
    for Arrow { from, to, .. } in arrows.iter().filter(|arrow| !arrow.dev) {
        let allowed = ARROWS
            .iter()
            .find(|(name, _)| name == from)
            .is_some_and(|(_, to_any)| to_any.contains(&to.as_str()));
        if to == TESTKIT {
            complaints.push(format!("    {from} depends on {to}, which is for tests"));
        } else if !allowed {
            complaints.push(format!("    {from} depends on {to}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Vec<String> {
        ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn arrow(from: &str, to: &str, dev: bool) -> Arrow {
        Arrow {
            from: from.to_owned(),
            to: to.to_owned(),
            dev,
        }
    }

    #[test]
    fn arrows_of_the_design_pass() {
        let arrows = [
            arrow("nydusbox", "nydusbox-protocol", false),
            arrow("nydusbox", "nydusbox-testkit", true),
        ];
        assert!(check(&packages(), &arrows).is_empty());
    }

    #[test]
    fn arrows_against_the_design_are_named() {
        for (from, to) in [
            ("nydusbox", "nydusbox-fsd"),
            ("nydusbox-image", "nydusbox-protocol"),
            ("nydusbox-cli", TESTKIT),
        ] {
            let complaints = check(&packages(), &[arrow(from, to, false)]);
            assert!(complaints.len() == 1 && complaints[0].contains(from) && complaints[0].contains(to));
        }
    }

    #[test]
    fn the_table_and_the_workspace_name_the_same_packages() {
        let mut packages = packages();
        packages.pop();
        packages.push("stranger".to_owned());
        assert_eq!(check(&packages, &[]).len(), 2);
    }
}
