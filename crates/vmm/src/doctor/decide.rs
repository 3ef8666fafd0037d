//! Turns what was found into checks. Pure: the sentences and commands are here, the questions in [`super::probe`].

use super::probe::{Facts, GuestFact, QemuFact};
use super::{Check, CheckState};
use crate::qemu::KvmUnusable;

const INSTALL_QEMU: &str = "apt-get install -y qemu-system-x86";
const INSTALL_KERNEL: &str = "apt-get install -y linux-image-cloud-amd64";
const INSTALL_BUSYBOX: &str = "apt-get install -y busybox-static";

/// A passthrough file system keeps a descriptor for what the guest has looked up; Debian's root file system has some
/// ten thousand files, and `find /` looks all of them up.
const COMFORTABLE_OPEN_FILES: u64 = 65_536;
/// The default guest's memory, which other programs' shared memory would compete for.
const COMFORTABLE_SHM_BYTES: u64 = 512 << 20;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    [
        ("qemu", qemu(&facts.qemu)),
        ("guest kernel", guest(&facts.guest)),
        ("busybox", busybox(&facts.busybox)),
        ("memfd", memfd(&facts.memfd)),
        ("kvm", kvm(facts.kvm.usable())),
        ("/dev/shm", shm(facts.shm_free_bytes)),
        ("open files", open_files(facts.open_files)),
    ]
    .map(|(name, state)| Check { name, state })
    .to_vec()
}

fn ok(detail: impl Into<String>) -> CheckState {
    CheckState::Ok {
        detail: detail.into(),
    }
}

fn missing(why: impl Into<String>, fix: &str) -> CheckState {
    CheckState::Missing {
        why: why.into(),
        fix: fix.to_owned(),
    }
}

fn qemu(fact: &QemuFact) -> CheckState {
    match fact {
        QemuFact::NotRun { error } => {
            missing(format!("qemu-system-x86_64 cannot be run: {error}"), INSTALL_QEMU)
        }
        QemuFact::Runs {
            version,
            has_vhost_user_fs: true,
        } => ok(format!("QEMU {version} with vhost-user-fs-pci")),
        QemuFact::Runs {
            version,
            has_vhost_user_fs: false,
        } => missing(
            format!("QEMU {version} has no vhost-user-fs-pci device"),
            INSTALL_QEMU,
        ),
    }
}

fn guest(fact: &GuestFact) -> CheckState {
    match fact {
        GuestFact::Found { kernel, modules } => ok(format!(
            "kernel {kernel} with virtiofs and overlay ({modules} modules to load)"
        )),
        GuestFact::Unusable { error } => missing(error, INSTALL_KERNEL),
    }
}

fn busybox(fact: &Result<String, String>) -> CheckState {
    match fact {
        Ok(path) => ok(format!("static busybox {path}")),
        Err(error) => missing(error, INSTALL_BUSYBOX),
    }
}

fn memfd(fact: &Result<(), String>) -> CheckState {
    match fact {
        Ok(()) => ok("memfd_create works"),
        // Linux has it since 3.17; where it fails, a container's seccomp profile forbids it.
        Err(error) => missing(
            format!("memfd_create fails ({error}), so the daemon cannot map the guest's memory"),
            "docker run --security-opt seccomp=unconfined …",
        ),
    }
}

fn kvm(usable: Result<(), KvmUnusable>) -> CheckState {
    let slower = |why: &KvmUnusable| format!("{why}; guests are emulated (TCG), which is much slower");
    match usable {
        Ok(()) => ok("usable"),
        Err(why @ KvmUnusable::NoProcessorSupport) => CheckState::Warn {
            why: slower(&why),
            fix: None,
        },
        Err(why @ KvmUnusable::NeedsItsKernel) => CheckState::Warn {
            why: slower(&why),
            fix: Some("nydusbox run --accel kvm --guest-root DIR …".to_owned()),
        },
        Err(why @ KvmUnusable::Device { kind }) => CheckState::Warn {
            why: slower(&why),
            fix: Some(
                match kind {
                    std::io::ErrorKind::PermissionDenied => "usermod -aG kvm \"$USER\"",
                    _ => "modprobe -a kvm_intel kvm_amd",
                }
                .to_owned(),
            ),
        },
    }
}

fn shm(free: Option<u64>) -> CheckState {
    match free {
        None => CheckState::Warn {
            why: "there is no /dev/shm; guest memory is a memfd and does not need it, other tools may"
                .to_owned(),
            fix: Some("mount -t tmpfs tmpfs /dev/shm".to_owned()),
        },
        Some(bytes) if bytes < COMFORTABLE_SHM_BYTES => CheckState::Warn {
            why: format!(
                "{} MiB free; guest memory is a memfd and does not need it, other tools may",
                bytes >> 20
            ),
            fix: Some("mount -o remount,size=1G /dev/shm".to_owned()),
        },
        Some(bytes) => ok(format!("{} MiB free", bytes >> 20)),
    }
}

fn open_files((soft, hard): (Option<u64>, Option<u64>)) -> CheckState {
    let shown = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let enough = |limit: Option<u64>| limit.is_none_or(|n| n >= COMFORTABLE_OPEN_FILES);
    let limits = format!("limit {} (hard {})", shown(soft), shown(hard));
    if enough(hard) {
        // The daemon raises the soft limit by itself.
        ok(limits)
    } else {
        CheckState::Warn {
            why: format!("{limits}: a share with more than that many files in use may answer with ENFILE"),
            fix: Some(format!("ulimit -Hn {COMFORTABLE_OPEN_FILES}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{KvmFacts, Virtualisation};
    use std::io::ErrorKind;

    fn good() -> Facts {
        Facts {
            qemu: QemuFact::Runs {
                version: "7.2.22".to_owned(),
                has_vhost_user_fs: true,
            },
            guest: GuestFact::Found {
                kernel: "6.1.0-1".to_owned(),
                modules: 9,
            },
            busybox: Ok("/bin/busybox".to_owned()),
            memfd: Ok(()),
            kvm: KvmFacts {
                by: Virtualisation::Processor,
                device: Ok(()),
            },
            shm_free_bytes: Some(1 << 30),
            open_files: (Some(1024), Some(1 << 20)),
        }
    }

    #[test]
    fn a_good_machine_lacks_nothing() {
        for check in checks(&good()) {
            assert!(matches!(check.state, CheckState::Ok { .. }), "{check:?}");
        }
    }

    /// The check's name, whether it stops a boot, its command, and the change to a good machine.
    type Spoilt = (&'static str, bool, &'static str, &'static dyn Fn(&mut Facts));

    /// One fact spoilt, one check changed: its name, whether it stops a boot, and its command.
    #[test]
    fn each_lack_has_its_command() {
        fn error() -> String {
            "x".to_owned()
        }
        let spoil: [Spoilt; 10] = [
            ("qemu", true, INSTALL_QEMU, &|f| {
                f.qemu = QemuFact::NotRun { error: error() }
            }),
            ("qemu", true, INSTALL_QEMU, &|f| {
                f.qemu = QemuFact::Runs {
                    version: "5".to_owned(),
                    has_vhost_user_fs: false,
                };
            }),
            ("guest kernel", true, INSTALL_KERNEL, &|f| {
                f.guest = GuestFact::Unusable { error: error() }
            }),
            ("busybox", true, INSTALL_BUSYBOX, &|f| f.busybox = Err(error())),
            (
                "memfd",
                true,
                "docker run --security-opt seccomp=unconfined …",
                &|f| f.memfd = Err(error()),
            ),
            ("kvm", false, "", &|f| f.kvm.by = Virtualisation::None),
            (
                "kvm",
                false,
                "nydusbox run --accel kvm --guest-root DIR …",
                &|f| f.kvm.by = Virtualisation::Pvm,
            ),
            ("kvm", false, "usermod -aG kvm \"$USER\"", &|f| {
                f.kvm.device = Err(ErrorKind::PermissionDenied);
            }),
            ("/dev/shm", false, "mount -t tmpfs tmpfs /dev/shm", &|f| {
                f.shm_free_bytes = None;
            }),
            ("open files", false, "ulimit -Hn 65536", &|f| {
                f.open_files = (Some(1024), Some(4096));
            }),
        ];
        for (name, stops, command, change) in spoil {
            let mut facts = good();
            change(&mut facts);
            let spoilt: Vec<Check> = checks(&facts)
                .into_iter()
                .filter(|c| !matches!(c.state, CheckState::Ok { .. }))
                .collect();
            assert_eq!(spoilt.len(), 1, "{name}: {spoilt:?}");
            assert_eq!((spoilt[0].name, spoilt[0].is_missing()), (name, stops));
            let fix = match &spoilt[0].state {
                CheckState::Ok { .. } => None,
                CheckState::Warn { fix, .. } => fix.clone(),
                CheckState::Missing { fix, .. } => Some(fix.clone()),
            };
            assert_eq!(fix.unwrap_or_default(), command, "{name}");
        }
    }
}
