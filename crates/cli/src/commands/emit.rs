//! `nydusbox emit`: what a VMM and a Kata agent have to be told about a sandbox.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nydusbox_protocol::{ContainerId, MountPoint, SandboxId};
use nydusbox_rootfs::{
    AgentStorage, OverlayPlan, QueueSize, ShareDevice, ShareSocket, ShareTag, check, qemu,
};

use super::block_on;
use super::output::OutputArgs;
use super::size::Size;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire::{self, SandboxInfo};
use crate::error::{Failure, say};
use crate::state_dir::StateDir;

/// The option of our daemon.
const REQUEST_QUEUES: &str = "--request-queues";

/// Arguments are printed as one line for a shell, with --json as an array of strings. QEMU's machine must use the
/// memory: `-machine …,memory-backend=mem`. With --check nothing is printed but what is wrong with what you configured.
#[derive(Debug, Args)]
pub(crate) struct EmitArgs {
    /// Sandbox the VMM is to be connected to
    id: SandboxId,
    /// For whom
    #[arg(value_enum)]
    what: What,
    /// kata-storage: container whose root file system is mounted too
    container: Option<ContainerId>,
    /// Guest memory, shared with the daemon
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// Entries in each queue, a power of two up to 1024
    #[arg(long, value_name = "NUMBER", default_value_t = 1024)]
    queue_size: u16,
    /// Name by which the guest mounts the share
    #[arg(long, value_name = "TAG", default_value = nydusbox_rootfs::layout::SHARE_TAG)]
    tag: String,
    /// Instead, judge a VMM's configuration that is there already, and fail if the share cannot work with it: QEMU's
    /// arguments, one a line or as in /proc/PID/cmdline; Cloud Hypervisor's VmConfig; the agent's storages; `-` reads
    /// standard input
    #[arg(long, value_name = "FILE|-")]
    check: Option<PathBuf>,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Arguments for qemu-system
    Qemu,
    /// Arguments for cloud-hypervisor
    CloudHypervisor,
    /// What `vm.create` of cloud-hypervisor's API takes among the rest, as JSON
    CloudHypervisorConfig,
    /// Storages for the agent's requests, as JSON
    KataStorage,
}

pub(crate) fn run(args: &EmitArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let info: SandboxInfo =
        block_on(async { Client::of(state_dir, &args.id).await?.get(wire::SANDBOX).await })?;
    if let Some(file) = &args.check {
        return judge(args, file, request_queues(&info));
    }
    let tag = ShareTag::new(&args.tag).map_err(|e| Failure::new("use this --tag", &e))?;
    if args.what == What::KataStorage {
        let mut storages = vec![AgentStorage::share(&tag)];
        if let Some(container) = &args.container {
            storages.push(AgentStorage::rootfs(&overlay(&info, container)?));
        }
        // JSON either way: it is for a program.
        return OutputArgs { json: true }.print(&storages, String::new);
    }
    let sockets = info
        .sockets
        .ok_or_else(|| Failure::plain(format!("sandbox {} names no socket", args.id)))?;
    let device = ShareDevice {
        tag,
        queue_size: QueueSize::new(args.queue_size).map_err(|e| Failure::new("use this --queue-size", &e))?,
        ..ShareDevice::on(ShareSocket::new(sockets.vhost).map_err(|e| Failure::new("use the socket", &e))?)
    };
    let memory_bytes = args.memory.bytes();
    let arguments = match args.what {
        What::Qemu => {
            let mut arguments = qemu::memory_arguments(memory_bytes);
            arguments.extend(qemu::share_arguments(&device));
            arguments
        }
        What::CloudHypervisor => device
            .cloud_hypervisor_arguments(memory_bytes)
            .map_err(|e| Failure::of(&e))?,
        What::CloudHypervisorConfig => {
            let config = device
                .cloud_hypervisor_config(memory_bytes)
                .map_err(|e| Failure::of(&e))?;
            return OutputArgs { json: true }.print(&config, String::new);
        }
        // Returned above.
        What::KataStorage => Vec::new(),
    };
    let arguments = texts(arguments)?;
    args.output.print(&arguments, || {
        arguments.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" ")
    })
}

/// Says what is wrong with a configuration of the user's; one complaint a line.
fn judge(args: &EmitArgs, file: &Path, served: u64) -> Result<(), Failure> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::new(&format!("read the configuration {}", file.display()), e)
    };
    let text = match file == Path::new("-") {
        true => io::read_to_string(io::stdin()),
        false => std::fs::read_to_string(file),
    }
    .map_err(|e| failed(&e))?;
    let document = || serde_json::from_str(&text).map_err(|e| failed(&e));
    let unfit = match args.what {
        What::Qemu => {
            let arguments: Vec<&str> = text.split(['\0', '\n']).filter(|a| !a.is_empty()).collect();
            check::qemu(&arguments, served)
        }
        What::CloudHypervisor | What::CloudHypervisorConfig => check::cloud_hypervisor(&document()?, served),
        What::KataStorage => check::agent_storages(&document()?),
    };
    let complaints: Vec<String> = unfit.iter().map(ToString::to_string).collect();
    args.output.print(&complaints, || match complaints.is_empty() {
        true => "the share works with it".to_owned(),
        false => complaints.join("\n"),
    })?;
    match complaints.len() {
        0 => Ok(()),
        1 => Err(Failure::plain("the share does not work with this configuration")),
        n => Err(Failure::plain(format!(
            "the share does not work with this configuration, for {n} reasons"
        ))),
    }
}

/// How many request queues the sandbox's daemon serves.
fn request_queues(info: &SandboxInfo) -> u64 {
    let line = info
        .daemon
        .pid
        .and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    queues_of(&String::from_utf8_lossy(&line.unwrap_or_default()))
}

/// One, unless the daemon is ours and was told another number.
fn queues_of(command_line: &str) -> u64 {
    let mut words = command_line
        .split('\0')
        .skip_while(|word| !word.starts_with(REQUEST_QUEUES));
    let said = match words.next().and_then(|word| word.strip_prefix(REQUEST_QUEUES)) {
        Some("") => words.next(),
        other => other.and_then(|value| value.strip_prefix('=')),
    };
    said.and_then(|number| number.parse().ok()).unwrap_or(1)
}

/// The overlay of a container that is mounted.
fn overlay(info: &SandboxInfo, container: &ContainerId) -> Result<OverlayPlan, Failure> {
    let mounted: Vec<_> = info
        .mounts
        .iter()
        .filter(|m| m.at.is_layer_of(container))
        .collect();
    let layers = NonZeroUsize::new(mounted.len()).ok_or_else(|| {
        Failure::plain(format!(
            "sandbox {} has no image for container {container}",
            info.id
        ))
        .hint(format!(
            "mount it first: `nydusbox mount {} {container} …`",
            info.id
        ))
    })?;
    // A recovery, or an unmount that was interrupted, may have lost any of them.
    let lost = (0..layers.get())
        .map(|layer| MountPoint::rafs_layer(container, layer))
        .find(|at| !mounted.iter().any(|mount| mount.at == *at));
    if let Some(lost) = lost {
        return Err(
            Failure::plain(format!("container {container} lacks the layer at {lost}"))
                .hint("unmount it and mount it again"),
        );
    }
    if let Some(doubtful) = mounted.iter().find(|mount| !mount.confirmed) {
        say(format_args!(
            "warning: it is not confirmed that {} is mounted",
            doubtful.at
        ));
    }
    if !mounted.iter().any(|mount| mount.snapshotdir.is_some()) {
        say(format_args!(
            "warning: {container} was mounted without --snapshotdir: the agent finds no directory for its writes \
             unless you have put one into the share"
        ));
    }
    let container = nydusbox_rootfs::ContainerId::new(container.as_str())
        .map_err(|e| Failure::new("name the container", &e))?;
    Ok(OverlayPlan::for_layers(&container, layers))
}

fn texts(arguments: Vec<OsString>) -> Result<Vec<String>, Failure> {
    arguments
        .into_iter()
        .map(|a| {
            a.into_string()
                .map_err(|a| Failure::plain(format!("the argument {} is not UTF-8", a.display())))
        })
        .collect()
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_daemon_serves_the_queues_it_was_started_with() {
        for (line, queues) in [
            ("", 1),
            ("/usr/bin/nydusd\0virtiofs\0--sock\0/s\0", 1),
            ("nydusbox\0virtiofs\0--request-queues=4\0--log-level\0info\0", 4),
            ("nydusbox\0virtiofs\0--request-queues\08\0", 8),
            ("nydusbox\0virtiofs\0--request-queues\0", 1),
        ] {
            assert_eq!(queues_of(line), queues, "{line:?}");
        }
    }

    /// The middle one of three, and the lowest of what is left of three.
    #[test]
    fn a_layer_that_is_not_mounted_is_named() {
        let container = ContainerId::new("c1").unwrap();
        let of = |places: &[&str]| {
            let mounts: Vec<_> = places
                .iter()
                .map(|at| json!({"at": at, "fs_type": "rafs", "source": "/b", "snapshotdir": "/s", "confirmed": true}))
                .collect();
            let info = json!({"id": "s1", "state": "serving", "supervisor": {"pid": 1}, "mounts": mounts,
                "daemon": {"pid": 2, "program": "/p", "version": "1"}, "vmm": {"attached": false},
                "health": null, "sockets": null, "exit": null});
            let info: SandboxInfo = serde_json::from_value(info).unwrap();
            overlay(&info, &container).map_err(|failure| failure.into_parts().0)
        };
        let (top, second, third) = ("/rafs/c1/lowerdir", "/rafs/c1/lowerdir1", "/rafs/c1/lowerdir2");
        for (places, lost) in [
            (vec![top, third], second),
            (vec![third], top),
            (vec![second, third], top),
        ] {
            assert!(of(&places).unwrap_err().ends_with(lost), "{places:?}");
        }
        assert_eq!(
            of(&[third, second, top, "/rafs/c2/lowerdir"])
                .unwrap()
                .lowers()
                .len(),
            3
        );
    }

    #[test]
    fn arguments_are_quoted_where_a_shell_would_change_them() {
        assert_eq!(quoted("size=1,path=/run/x.sock"), "size=1,path=/run/x.sock");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
