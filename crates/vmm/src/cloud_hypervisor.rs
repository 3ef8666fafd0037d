//! Cloud Hypervisor's arguments for the same guest. This crate does not start it.
//!
//! The machine boots and mounts the share; but Cloud Hypervisor has no named virtio ports, over which our init reports
//! and the command's streams run. So these arguments are for a caller with an initramfs of its own.

use std::ffi::OsString;
use std::path::Path;

use nydusbox_rootfs::CloudHypervisorError;

use crate::qemu::{MachineConfig, VmConfig};

/// Everything after the program's name, for the kernel, memory and processors of `machine` and the share of `config`. The guest's console
/// goes to the file `console`. Cloud Hypervisor needs no accelerator named: it is KVM or nothing.
///
/// # Errors
/// [`CloudHypervisorError`] when the share's socket or tag has a comma or quote, which its options can't carry.
pub fn arguments(
    machine: &MachineConfig,
    config: &VmConfig,
    initramfs: &Path,
    console: &Path,
) -> Result<Vec<OsString>, CloudHypervisorError> {
    let spec = machine.spec();
    let mut serial = OsString::from("file=");
    serial.push(console);
    let mut arguments: Vec<OsString> = vec![
        "--kernel".into(),
        spec.assets.kernel().image().into(),
        "--initramfs".into(),
        initramfs.into(),
        "--cmdline".into(),
        "console=ttyS0 quiet panic=-1".into(),
        "--cpus".into(),
        format!("boot={}", spec.cpus).into(),
        "--serial".into(),
        serial,
        "--console".into(),
        "off".into(),
    ];
    let share = &config.spec().share;
    arguments.extend(share.cloud_hypervisor_arguments(spec.memory_bytes)?);
    Ok(arguments)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_whole_command_line() {
        let config = VmConfig::new(crate::qemu::made_up_spec()).unwrap();
        let machine = MachineConfig::new(crate::qemu::made_up_machine()).unwrap();
        let arguments = arguments(
            &machine,
            &config,
            Path::new("/vm/initramfs"),
            Path::new("/vm/console"),
        )
        .unwrap();
        let shown: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
        insta::assert_snapshot!(shown.join(" ").replace(" --", "\n--"), @r"
        --kernel /boot/vmlinuz-6.1.0-1-cloud-amd64
        --initramfs /vm/initramfs
        --cmdline console=ttyS0 quiet panic=-1
        --cpus boot=2
        --serial file=/vm/console
        --console off
        --memory size=536870912,shared=on
        --fs tag=kataShared,socket=/run/fs.sock,num_queues=1,queue_size=1024
        ");
    }
}
