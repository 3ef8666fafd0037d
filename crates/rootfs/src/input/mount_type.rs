//! The mount types that say "this is nydus'".
//!
//! containerd runs `mount.fuse` for a type `fuse.X`, which runs `X`. So the type names the mount helper: by its name,
//! by its name with a suffix of its installer's (`nydus-overlayfs-abc`), or by its path.

/// The name every such helper begins with.
pub const HELPER_NAME: &str = "nydus-overlayfs";
const PREFIX: &str = "fuse.";

/// The mount helper named by the mount type `mount_type`, a name to look up or an absolute path; `None` when the type
/// is not nydus'. A relative path with a directory is not: whose directory would decide what runs.
#[must_use]
pub fn nydus_helper(mount_type: &str) -> Option<&str> {
    let helper = mount_type.strip_prefix(PREFIX)?;
    let name = match helper.rsplit_once('/') {
        None => helper,
        Some((dir, name)) if dir.is_empty() || dir.starts_with('/') => name,
        Some(_) => return None,
    };
    let plain = !helper.contains(|c: char| c.is_control() || c.is_whitespace());
    (plain && name.starts_with(HELPER_NAME)).then_some(helper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_named_by_name_suffix_or_path() {
        for helper in [
            "nydus-overlayfs",
            "nydus-overlayfs-e0ae398a2",
            "/usr/local/bin/nydus-overlayfs",
            "/opt/nydus/bin/nydus-overlayfs-x",
            "/nydus-overlayfs",
        ] {
            assert_eq!(nydus_helper(&format!("fuse.{helper}")), Some(helper));
        }
    }

    #[test]
    fn other_types_are_not_nydus() {
        for mount_type in [
            "",
            "overlay",
            "fuse",
            "nydus-overlayfs",
            "fuse.fuse-overlayfs",
            "fuse.my-nydus-overlayfs",
            "fuse./nydus-overlayfs/bin/other",
            "fuse.bin/nydus-overlayfs",
            "fuse./usr/bin/nydus-overlayfs/",
            "fuse.nydus-overlayfs x",
        ] {
            assert_eq!(nydus_helper(mount_type), None, "{mount_type:?}");
        }
    }
}
