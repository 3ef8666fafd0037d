//! QEMU's command line. Pure: the same machine always has the same arguments.

use std::ffi::OsString;
use std::path::Path;

use nydusbox_rootfs::qemu::{MEMORY_ID, memory_arguments, option_value, share_arguments};

use super::accel::Accel;
use super::config::VmConfig;

/// The virtio ports, in the order the guest relies on: control is last.
pub(super) const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "control"];

/// The descriptor number QEMU finds the first port's socket at; the others follow.
pub(super) const FIRST_PORT_FD: i32 = 3;

/// Kernel parameters. `panic=-1` reboots at once, which `-no-reboot` turns into an exit. Without `no_timer_check` a
/// kernel under emulation panics ("IO-APIC + timer doesn't work") if a busy host leaves it without a tick for as long
/// as it counts them. Without `cryptomgr.notests` it tests its ciphers before it starts init, which takes 0.5 s of 2.7
/// under emulation. `mitigations=off` and `tsc=reliable` were measured under emulation (five boots each on two
/// cores) and gain nothing beyond the noise, so they are not here.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests";

/// The machine. `microvm` with a PCIe bus starts its init 0.5 s sooner under emulation (2.2 s against 2.7 s in all),
/// but with QEMU 7.2 and Debian's 6.1 kernel 11 of 24 boots hung before the kernel printed anything; q35: none
/// of 24. What the guest doesn't use is switched off: less for firmware and drivers to probe.
const MACHINE: &str = "q35,smm=off,vmport=off,sata=off,smbus=off";

/// Everything after the program's name. The process must find the sockets of [`PORTS`] at consecutive descriptors
/// from [`FIRST_PORT_FD`] on.
pub(super) fn arguments(config: &VmConfig, accel: Accel, initramfs: &Path, console: &Path) -> Vec<OsString> {
    let spec = config.spec();
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        // Everything TCG can emulate: current distributions need more than the default's x86-64-v1.
        Accel::Tcg => ("tcg", "max"),
    };
    let mut arguments: Vec<OsString> = [
        // A user's configuration files must not change the machine.
        "-no-user-config",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
    ]
    .map(OsString::from)
    .to_vec();
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option(
        "-machine",
        format!("{MACHINE},accel={accel},memory-backend={MEMORY_ID}").into(),
    );
    option("-cpu", cpu.into());
    option("-smp", spec.cpus.to_string().into());
    option("-kernel", spec.assets.kernel().image().into());
    option("-initrd", initramfs.into());
    option("-append", KERNEL_PARAMETERS.into());
    let mut console_file = OsString::from("file,id=console,path=");
    console_file.push(option_value(console.as_os_str()));
    option("-chardev", console_file);
    option("-serial", "chardev:console".into());
    option("-device", "virtio-serial-pci".into());
    for (fd, port) in (FIRST_PORT_FD..).zip(PORTS) {
        option("-chardev", format!("socket,id={port},fd={fd}").into());
        option(
            "-device",
            format!("virtserialport,chardev={port},name=nydusbox.{port}").into(),
        );
    }
    arguments.extend(memory_arguments(spec.memory_bytes));
    arguments.extend(share_arguments(&spec.share));
    arguments
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::config::tests::spec;
    use super::*;

    fn shown(accel: Accel) -> String {
        let config = VmConfig::new(spec()).unwrap();
        let arguments = arguments(
            &config,
            accel,
            Path::new("/vm/initramfs"),
            Path::new("/vm/a,b/console"),
        );
        arguments
            .iter()
            .map(|a| a.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
            .replace(" -", "\n-")
    }

    #[test]
    fn the_whole_command_line() {
        insta::assert_snapshot!(shown(Accel::Tcg), @r"
        -no-user-config
        -nodefaults
        -no-reboot
        -display none
        -machine q35,smm=off,vmport=off,sata=off,smbus=off,accel=tcg,memory-backend=mem
        -cpu max
        -smp 2
        -kernel /boot/vmlinuz-6.1.0-1-cloud-amd64
        -initrd /vm/initramfs
        -append console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests
        -chardev file,id=console,path=/vm/a,,b/console
        -serial chardev:console
        -device virtio-serial-pci
        -chardev socket,id=stdin,fd=3
        -device virtserialport,chardev=stdin,name=nydusbox.stdin
        -chardev socket,id=stdout,fd=4
        -device virtserialport,chardev=stdout,name=nydusbox.stdout
        -chardev socket,id=stderr,fd=5
        -device virtserialport,chardev=stderr,name=nydusbox.stderr
        -chardev socket,id=control,fd=6
        -device virtserialport,chardev=control,name=nydusbox.control
        -m 536870912B
        -object memory-backend-memfd,id=mem,size=536870912B,share=on
        -chardev socket,id=fs,path=/run/fs.sock
        -device vhost-user-fs-pci,chardev=fs,queue-size=1024,tag=kataShared
        ");
    }

    #[test]
    fn kvm_changes_the_accelerator_and_the_processor_only() {
        let (tcg, kvm) = (shown(Accel::Tcg), shown(Accel::Kvm));
        let changed: Vec<_> = tcg.lines().zip(kvm.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(kvm.contains("accel=kvm,") && kvm.contains("-cpu host"));
    }
}
