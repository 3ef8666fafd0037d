//! Kata Containers' configuration: the hypervisor's section that puts a daemon of ours where Kata starts nydusd.

use std::fmt::Write as _;

use crate::{HostPath, QueueSize};

/// A hypervisor whose section has the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KataHypervisor {
    /// QEMU, of both runtimes.
    Qemu,
    /// Cloud Hypervisor, of the Go runtime.
    Clh,
    /// Cloud Hypervisor, of runtime-rs.
    CloudHypervisor,
}

impl KataHypervisor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Qemu, Self::Clh, Self::CloudHypervisor];

    /// The section's name below `hypervisor`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Clh => "clh",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

/// The section as TOML. `daemon` is our executable: Kata calls it `DAEMON virtiofs --apisock … --sock …`, which the
/// command understands under any name.
///
/// The extra arguments are emptied: Kata's default ones are virtiofsd's. The cache size is for DAX, which no
/// nydus daemon serves.
#[must_use]
pub fn hypervisor_section(hypervisor: KataHypervisor, daemon: &HostPath, queue_size: QueueSize) -> String {
    let daemon = toml_string(daemon.as_str());
    format!(
        "[hypervisor.{}]\n\
         shared_fs = \"virtio-fs-nydus\"\n\
         virtio_fs_daemon = {daemon}\n\
         valid_virtio_fs_daemon_paths = [{daemon}]\n\
         virtio_fs_extra_args = []\n\
         virtio_fs_cache_size = 0\n\
         virtio_fs_queue_size = {}\n",
        hypervisor.as_str(),
        queue_size.entries(),
    )
}

/// A basic string. A [`HostPath`] has no control characters, the only ones besides these two that need an escape.
fn toml_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        let _ = write!(quoted, "{c}");
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_toml_with_kata_keys() {
        for (hypervisor, path) in [
            (KataHypervisor::Qemu, "/usr/bin/nydusbox"),
            (KataHypervisor::Clh, r#"/a "b\c"#),
        ] {
            let text = hypervisor_section(
                hypervisor,
                &HostPath::new(path).unwrap(),
                QueueSize::new(512).unwrap(),
            );
            let table: toml::Value = text.parse().unwrap();
            let section = &table["hypervisor"][hypervisor.as_str()];
            assert_eq!(section["shared_fs"].as_str().unwrap(), "virtio-fs-nydus");
            assert_eq!(section["virtio_fs_daemon"].as_str().unwrap(), path);
            assert_eq!(section["valid_virtio_fs_daemon_paths"][0].as_str().unwrap(), path);
            assert_eq!(section["virtio_fs_extra_args"].as_array().unwrap().len(), 0);
            assert_eq!(section["virtio_fs_queue_size"].as_integer().unwrap(), 512);
        }
    }
}
