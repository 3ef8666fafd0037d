//! Boots a microVM on a running virtio-fs daemon and runs one command in it.
//!
//! Given the daemon's vhost-user socket, this crate owns the rest of the machine: what the guest is booted from
//! ([`guest`]), its initramfs, QEMU's process ([`Machine`], [`Vm`]), machines kept to go on from ([`Templates`]), and the answer to "what does this machine lack" ([`doctor`]).
//! It starts no daemon and mounts nothing on the host. For Cloud Hypervisor it has the arguments only
//! ([`cloud_hypervisor`]). Read [`qemu`] next.
//!
//! ```no_run
//! use nydusbox_rootfs::{ContainerId, OverlayPlan, ShareDevice, ShareSocket};
//! use nydusbox_vmm::{
//!     GuestAssets, GuestStdio, Machine, MachineConfig, MachineSpec, VmConfig, VmOutcome, VmSpec,
//! };
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let assets = GuestAssets::find("/".as_ref())?;
//! let machine = MachineConfig::new(MachineSpec::new(assets))?;
//! // It boots while the daemon is started and the image mounted.
//! std::fs::create_dir("/run/machine-of-s1")?;
//! let machine = Machine::start(&machine, "/run/machine-of-s1".as_ref()).await?;
//!
//! let share = ShareDevice::on(ShareSocket::new("/run/nydusbox/s1/vhost.sock")?);
//! let rootfs = OverlayPlan::for_container(&ContainerId::new("c1")?);
//! let config = VmConfig::new(VmSpec::new(share, rootfs, vec!["cat".into(), "/etc/os-release".into()]))?;
//! let mut vm = machine.run(&config, GuestStdio::output(tokio::io::stdout(), tokio::io::stderr()));
//! match vm.wait().await {
//!     VmOutcome::CommandExited { status } => println!("exit status {status}"),
//!     other => println!("{other}"),
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod cloud_hypervisor;
pub mod doctor;
pub mod guest;
mod hostname;
mod initramfs;
pub mod qemu;
mod template;
mod user;

pub use guest::{GuestAssets, GuestAssetsError};
pub use hostname::{Hostname, HostnameError};
pub use initramfs::InitramfsError;
pub use qemu::{
    Accel, AccelChoice, AccelRequest, BootError, BootStage, DEFAULT_PATH, GuestEvent, GuestStdio, GuestStep,
    KvmFacts, KvmUnusable, Machine, MachineConfig, MachineConfigError, MachineSpec, Origin, SharedDir,
    UpperDir, Virtualisation, Vm, VmConfig, VmConfigError, VmOutcome, VmSpec,
};
pub use template::Templates;
pub use user::{ContainerUser, ContainerUserError};
