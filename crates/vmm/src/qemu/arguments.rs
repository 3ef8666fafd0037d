//! QEMU's command line. Pure: the same machine always has the same arguments.

use std::ffi::OsString;
use std::path::Path;

use nydusbox_rootfs::qemu::{MEMORY_ID, option_value};

use super::accel::Accel;
use super::machine_config::MachineSpec;

/// The virtio ports, in the order the guest relies on: control is last.
pub(super) const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "control"];

/// The descriptor number QEMU finds the first port's socket at; the others follow.
pub(super) const FIRST_PORT_FD: i32 = 3;
/// Where it finds the control socket.
pub(super) const QMP_FD: i32 = FIRST_PORT_FD + 4;
/// Where it finds the initramfs.
pub(super) const INITRAMFS_FD: i32 = QMP_FD + 1;
/// Where it finds the guest's memory: a memfd, which is what a vhost-user daemon can map.
pub(super) const MEMORY_FD: i32 = INITRAMFS_FD + 1;
/// Where it reads the state of a machine that goes on.
pub(super) const STATE_FD: i32 = MEMORY_FD + 1;
/// Where it finds the socket of the guest's console.
pub(super) const CONSOLE_FD: i32 = STATE_FD + 1;

/// The ports at which devices are plugged in once the guest waits for them: the share, and random numbers. Slots of
/// the root bus itself take none later.
pub(super) const SHARE_PORT: &str = "share";
pub(super) const RANDOM_PORT: &str = "random";

/// Kernel parameters. `panic=-1` reboots at once, which `-no-reboot` turns into an exit. Without `no_timer_check` a
/// kernel under emulation panics ("IO-APIC + timer doesn't work") if a busy host leaves it without a tick for as long
/// as it counts them. Without `cryptomgr.notests` it tests its ciphers before it starts init, which takes 0.5 s of 2.7
/// under emulation. `mitigations=off` and `tsc=reliable` were measured under emulation (five boots each on two
/// cores) and gain nothing beyond the noise, so they are not here.
///
/// Random numbers wait for the device that brings them (`provide.rs`): with the processor's own the kernel would have
/// all it wants when the machine is saved, and those that go on from there would draw the same ones.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests \
                                 random.trust_cpu=off random.trust_bootloader=off";

/// The machine. `microvm` with a PCIe bus starts its init 0.5 s sooner under emulation (2.2 s against 2.7 s in all),
/// but with QEMU 7.2 and Debian's 6.1 kernel 11 of 24 boots hung before the kernel printed anything; q35: none
/// of 24. What the guest doesn't use is switched off: less for firmware and drivers to probe.
const MACHINE: &str = "q35,smm=off,vmport=off,sata=off,smbus=off";

/// Everything after the program's name; `name` is the machine's, for who lists processes. The process must find at their
/// numbers the sockets of [`PORTS`], the control socket, the initramfs, the memory, of a machine that goes on
/// (`incoming`) its state, and the console's socket.
pub(super) fn arguments(spec: &MachineSpec, accel: Accel, name: &Path, incoming: bool) -> Vec<OsString> {
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
    let mut guest = OsString::from("guest=");
    guest.push(option_value(name.as_os_str()));
    option("-name", guest);
    option(
        "-machine",
        format!("{MACHINE},accel={accel},memory-backend={MEMORY_ID}").into(),
    );
    option("-cpu", cpu.into());
    option("-smp", spec.cpus.to_string().into());
    option("-kernel", spec.assets.kernel().image().into());
    option("-initrd", in_process(INITRAMFS_FD).into());
    option("-append", KERNEL_PARAMETERS.into());
    option("-chardev", format!("socket,id=console,fd={CONSOLE_FD}").into());
    option("-serial", "chardev:console".into());
    option("-device", "virtio-serial-pci".into());
    for (fd, port) in (FIRST_PORT_FD..).zip(PORTS) {
        option("-chardev", format!("socket,id={port},fd={fd}").into());
        option(
            "-device",
            format!("virtserialport,chardev={port},name=nydusbox.{port}").into(),
        );
    }
    for (number, port) in (1..).zip([SHARE_PORT, RANDOM_PORT]) {
        option(
            "-device",
            format!("pcie-root-port,id={port},bus=pcie.0,chassis={number},slot={number}").into(),
        );
    }
    option("-chardev", format!("socket,id=qmp,fd={QMP_FD}").into());
    option("-mon", "chardev=qmp,mode=control".into());
    let bytes = spec.memory_bytes;
    option("-m", format!("{bytes}B").into());
    option(
        "-object",
        format!(
            "memory-backend-file,id={MEMORY_ID},size={bytes}B,share=on,mem-path={}",
            in_process(MEMORY_FD)
        )
        .into(),
    );
    if incoming {
        option("-incoming", format!("fd:{STATE_FD}").into());
    }
    arguments
}

/// The path by which a process opens a descriptor of its own.
fn in_process(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

#[cfg(test)]
mod tests {
    use super::super::machine_config::made_up_spec;
    use super::*;

    fn shown(accel: Accel, incoming: bool) -> String {
        arguments(&made_up_spec(), accel, Path::new("/run/a,b/vm"), incoming)
            .join("\u{0}".as_ref())
            .to_string_lossy()
            .replace("\u{0}-", "\n-")
            .replace('\u{0}', " ")
    }

    #[test]
    fn the_whole_command_line() {
        insta::assert_snapshot!(shown(Accel::Tcg, false), @r"
        -no-user-config
        -nodefaults
        -no-reboot
        -display none
        -name guest=/run/a,,b/vm
        -machine q35,smm=off,vmport=off,sata=off,smbus=off,accel=tcg,memory-backend=mem
        -cpu max
        -smp 2
        -kernel /boot/vmlinuz-6.1.0-1-cloud-amd64
        -initrd /proc/self/fd/8
        -append console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests random.trust_cpu=off random.trust_bootloader=off
        -chardev socket,id=console,fd=11
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
        -device pcie-root-port,id=share,bus=pcie.0,chassis=1,slot=1
        -device pcie-root-port,id=random,bus=pcie.0,chassis=2,slot=2
        -chardev socket,id=qmp,fd=7
        -mon chardev=qmp,mode=control
        -m 536870912B
        -object memory-backend-file,id=mem,size=536870912B,share=on,mem-path=/proc/self/fd/9
        ");
    }

    #[test]
    fn a_machine_that_goes_on_is_the_same_one() {
        let incoming = shown(Accel::Tcg, true);
        assert_eq!(incoming, shown(Accel::Tcg, false) + "\n-incoming fd:10");
    }

    #[test]
    fn kvm_changes_the_accelerator_and_the_processor_only() {
        let (tcg, kvm) = (shown(Accel::Tcg, false), shown(Accel::Kvm, false));
        let changed: Vec<_> = tcg.lines().zip(kvm.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(kvm.contains("accel=kvm,") && kvm.contains("-cpu host"));
    }
}
