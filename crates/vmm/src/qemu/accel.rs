//! Which accelerator runs the guest, and why.
//!
//! A `/dev/kvm` that opens proves nothing: where the processor has no virtualisation (a nested guest, mostly) KVM is
//! there and fails on the first vCPU. So both are asked. KVM that does without the processor (PVM) boots kernels made for
//! it, and never ends booting others: it is used where it is asked for. The choice is pure; [`KvmFacts::probe`] does the
//! asking.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelRequest {
    /// KVM where it is usable, else emulation.
    #[default]
    Auto,
    /// KVM or nothing; also KVM that needs a kernel made for it.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

/// Why KVM can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvmUnusable {
    /// Neither `vmx` nor `svm` among the processor's flags.
    #[error("/proc/cpuinfo shows neither vmx nor svm")]
    NoProcessorSupport,
    /// Without the processor's help it boots only kernels made for that.
    #[error("KVM is PVM here, which boots only kernels made for it")]
    NeedsItsKernel,
    /// The device is missing or can't be opened.
    #[error("/dev/kvm cannot be opened: {kind}")]
    Device {
        /// How opening it failed.
        kind: io::ErrorKind,
    },
}

/// What KVM would run guests with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtualisation {
    /// The processor: it has `vmx` or `svm`.
    Processor,
    /// Page tables alone (PVM, the module `kvm_pvm`), in virtual machines that have no other.
    Pvm,
    /// Nothing that is known.
    None,
}

/// What this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// What KVM would run guests with.
    pub by: Virtualisation,
    /// Whether `/dev/kvm` opens for reading and writing.
    pub device: Result<(), io::ErrorKind>,
}

impl KvmFacts {
    /// Asks this machine.
    #[must_use]
    pub fn probe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            by: if has_virtualisation(&cpuinfo) {
                Virtualisation::Processor
            } else if Path::new("/sys/module/kvm_pvm").exists() {
                Virtualisation::Pvm
            } else {
                Virtualisation::None
            },
            device: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .map(drop)
                .map_err(|error| error.kind()),
        }
    }

    /// Whether KVM can run any guest here.
    ///
    /// # Errors
    /// [`KvmUnusable`] says why not.
    pub fn usable(&self) -> Result<(), KvmUnusable> {
        let device = self.device.map_err(|kind| KvmUnusable::Device { kind });
        match self.by {
            Virtualisation::Processor => device,
            Virtualisation::Pvm => device.and(Err(KvmUnusable::NeedsItsKernel)),
            Virtualisation::None => Err(KvmUnusable::NoProcessorSupport),
        }
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

/// The accelerator, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccelChoice {
    /// KVM is usable (and was not declined).
    Kvm,
    /// Emulation was asked for.
    TcgAsked,
    /// Emulation, because KVM can't be used.
    TcgBecause(KvmUnusable),
}

impl AccelChoice {
    /// Chooses.
    ///
    /// # Errors
    /// [`KvmUnusable`] when KVM was demanded and can't be had.
    pub fn choose(request: AccelRequest, facts: &KvmFacts) -> Result<Self, KvmUnusable> {
        match (request, facts.usable()) {
            (AccelRequest::Tcg, _) => Ok(Self::TcgAsked),
            (AccelRequest::Auto | AccelRequest::Kvm, Ok(()))
            | (AccelRequest::Kvm, Err(KvmUnusable::NeedsItsKernel)) => Ok(Self::Kvm),
            (AccelRequest::Auto, Err(why)) => Ok(Self::TcgBecause(why)),
            (AccelRequest::Kvm, Err(why)) => Err(why),
        }
    }

    /// The accelerator.
    #[must_use]
    pub fn accel(&self) -> Accel {
        match self {
            Self::Kvm => Accel::Kvm,
            Self::TcgAsked | Self::TcgBecause(_) => Accel::Tcg,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_processor_and_the_device_or_to_be_asked_for() {
        use AccelRequest::{Auto, Kvm, Tcg};
        use Virtualisation::{None, Processor, Pvm};
        let denied = io::ErrorKind::PermissionDenied;
        let no_device = KvmUnusable::Device { kind: denied };
        let tcg = |why: &KvmUnusable| Ok(AccelChoice::TcgBecause(why.clone()));
        let (no_processor, its_kernel) = (KvmUnusable::NoProcessorSupport, KvmUnusable::NeedsItsKernel);
        for (request, by, device, expected) in [
            (Auto, Processor, Ok(()), Ok(AccelChoice::Kvm)),
            (Kvm, Processor, Ok(()), Ok(AccelChoice::Kvm)),
            (Tcg, Processor, Ok(()), Ok(AccelChoice::TcgAsked)),
            (Auto, None, Ok(()), tcg(&no_processor)),
            (Auto, Processor, Err(denied), tcg(&no_device)),
            (Kvm, None, Ok(()), Err(no_processor)),
            (Kvm, Processor, Err(denied), Err(no_device.clone())),
            (Auto, Pvm, Ok(()), tcg(&its_kernel)),
            (Kvm, Pvm, Ok(()), Ok(AccelChoice::Kvm)),
            (Kvm, Pvm, Err(denied), Err(no_device)),
        ] {
            let choice = AccelChoice::choose(request, &KvmFacts { by, device });
            assert_eq!(choice, expected, "{request:?} {by:?} {device:?}");
        }
    }

    #[test]
    fn flags_are_read_as_words() {
        assert!(has_virtualisation("model name\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags\t\t: svm\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nvmx flags\t: vmx\n"));
    }
}
