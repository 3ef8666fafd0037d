//! Which accelerator runs the guest, and why.
//!
//! A `/dev/kvm` that opens proves nothing: where the processor has no virtualisation (a nested guest, mostly) KVM is
//! there and fails on the first vCPU. So both are asked. The choice is pure; [`KvmFacts::probe`] does the asking.

use std::fs::{self, OpenOptions};
use std::io;

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelRequest {
    /// KVM where it is usable, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
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
    /// The device is missing or can't be opened.
    #[error("/dev/kvm cannot be opened: {kind}")]
    Device {
        /// How opening it failed.
        kind: io::ErrorKind,
    },
}

/// What this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// Whether the processor has `vmx` or `svm`.
    pub processor: bool,
    /// Whether `/dev/kvm` opens for reading and writing.
    pub device: Result<(), io::ErrorKind>,
}

impl KvmFacts {
    /// Asks this machine.
    #[must_use]
    pub fn probe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            processor: has_virtualisation(&cpuinfo),
            device: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .map(drop)
                .map_err(|error| error.kind()),
        }
    }

    /// Whether KVM can run a guest here.
    ///
    /// # Errors
    /// [`KvmUnusable`] says why not.
    pub fn usable(&self) -> Result<(), KvmUnusable> {
        if !self.processor {
            return Err(KvmUnusable::NoProcessorSupport);
        }
        self.device.map_err(|kind| KvmUnusable::Device { kind })
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
            (AccelRequest::Auto | AccelRequest::Kvm, Ok(())) => Ok(Self::Kvm),
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
    fn kvm_needs_the_processor_and_the_device() {
        let denied = io::ErrorKind::PermissionDenied;
        let facts = |processor, device| KvmFacts { processor, device };
        let no_processor = KvmUnusable::NoProcessorSupport;
        let no_device = KvmUnusable::Device { kind: denied };
        for (request, facts, expected) in [
            (AccelRequest::Auto, facts(true, Ok(())), Ok(AccelChoice::Kvm)),
            (AccelRequest::Kvm, facts(true, Ok(())), Ok(AccelChoice::Kvm)),
            (AccelRequest::Tcg, facts(true, Ok(())), Ok(AccelChoice::TcgAsked)),
            (
                AccelRequest::Auto,
                facts(false, Ok(())),
                Ok(AccelChoice::TcgBecause(no_processor.clone())),
            ),
            (
                AccelRequest::Auto,
                facts(true, Err(denied)),
                Ok(AccelChoice::TcgBecause(no_device.clone())),
            ),
            (AccelRequest::Kvm, facts(false, Ok(())), Err(no_processor)),
            (AccelRequest::Kvm, facts(true, Err(denied)), Err(no_device)),
        ] {
            assert_eq!(
                AccelChoice::choose(request, &facts),
                expected,
                "{request:?} {facts:?}"
            );
        }
    }

    #[test]
    fn flags_are_read_as_words() {
        assert!(has_virtualisation("model name\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags\t\t: svm\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nvmx flags\t: vmx\n"));
    }
}
