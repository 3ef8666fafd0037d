//! What the library knows of a sandbox, in the words of `control.sock`.

use std::path::PathBuf;

use nydusbox::{
    CallError, ExitCause, MountError, RemountError, Status, StatusPhase, StopOutcome, StopStep, UnmountError,
};
use nydusbox_protocol::{DaemonInfo as Answer, SandboxId, SocketPath};

use super::trust::Trust;
use crate::control::wire::{
    Code, ControlError, DaemonInfo, ExitInfo, MountInfo, SandboxInfo, Sockets, State, Stopped,
    SupervisorInfo, VmmInfo,
};
use crate::error::{Failure, remedy};

/// What stays the same while a sandbox lives.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) id: SandboxId,
    pub(super) program: PathBuf,
    pub(super) vhost_socket: SocketPath,
    pub(super) api_socket: SocketPath,
    pub(super) trust: Trust,
}

/// The sandbox now. `answer` is what the daemon says of itself, if it does.
pub(super) fn info(subject: &Subject, status: &Status, answer: Option<&Answer>) -> SandboxInfo {
    let (state, exit) = match &status.phase {
        StatusPhase::Serving => (State::Serving, None),
        StatusPhase::Exited(exit) => (State::Exited, Some(exit)),
        StatusPhase::Stopped(exit) => (State::Stopping, exit.as_ref()),
        StatusPhase::Stopping => (State::Stopping, None),
        StatusPhase::Recovering { .. } => (State::Recovering, None),
        _ => (State::Unknown, None),
    };
    SandboxInfo {
        id: subject.id.clone(),
        state,
        supervisor: SupervisorInfo {
            pid: Some(std::process::id()),
        },
        daemon: DaemonInfo {
            pid: Some(status.pid),
            program: Some(subject.program.clone()),
            version: answer.map(|a| a.version.package_ver.clone()),
        },
        vmm: VmmInfo {
            // The daemon knows at once; a stock one does not tell.
            attached: answer.and_then(|a| a.vmm_attached).or(status.vmm_attached),
        },
        mounts: status.mounts.iter().map(MountInfo::from).collect(),
        health: Some(status.health.clone()),
        sockets: Some(Sockets {
            vhost: subject.vhost_socket.as_path().to_owned(),
            api: subject.api_socket.as_path().to_owned(),
        }),
        exit: exit.map(|exit| ExitInfo {
            reason: exit.cause.to_string(),
            last_lines: exit.last_lines.clone(),
        }),
    }
}

/// How a sandbox was stopped.
pub(super) fn stopped(id: &SandboxId, outcome: &StopOutcome) -> Stopped {
    let step = match &outcome.step {
        StopStep::Exited { .. } => "exited",
        StopStep::Killed => "killed",
        StopStep::AlreadyGone { .. } => "already_gone",
        StopStep::Unkillable => "unkillable",
        StopStep::Interrupted => "interrupted",
        _ => "unknown",
    };
    Stopped {
        id: id.clone(),
        step: step.to_owned(),
        unmount_failures: outcome
            .unmount_failures
            .iter()
            .map(|(at, e)| Failure::new(&format!("unmount {at}"), e).into_parts().0)
            .collect(),
        leftovers: outcome
            .leftovers
            .iter()
            .map(|l| Failure::of(l).into_parts().0)
            .collect(),
    }
}

/// Why a mount failed.
pub(super) fn mount_error(error: &MountError) -> ControlError {
    let code = match error {
        MountError::Conflict { .. } | MountError::Overlaps { .. } => Code::AlreadyMounted,
        MountError::SlotsExhausted { .. } => Code::SlotsExhausted,
        MountError::TooLarge { .. } => Code::BadConfig,
        MountError::Snapshotdir { .. } => Code::BadSnapshotdir,
        MountError::NoShare { .. } => Code::NoShare,
        MountError::Daemon { source, .. } => call_code(source),
        MountError::Exited { exit, .. } => return exited(exit.cause, error),
        MountError::Recovering { .. } => return recovering(error),
        MountError::Stopping { .. } => Code::Stopping,
        _ => Code::Internal,
    };
    let failure = Failure::of(error);
    ControlError::of(
        code,
        match error {
            MountError::Conflict { .. } => failure.hint(
                "`nydusbox remount` gives it another image or configuration, `nydusbox umount` takes it away",
            ),
            MountError::NoShare { .. } => failure.hint("`nydusbox start` shares a directory with --share"),
            _ => failure,
        },
    )
}

/// Why a remount failed.
pub(super) fn remount_error(error: &RemountError) -> ControlError {
    let code = match error {
        RemountError::NotMounted { .. } => Code::NotMounted,
        RemountError::NotAnImage { .. } => Code::Refused,
        RemountError::TooLarge { .. } => Code::BadConfig,
        RemountError::Daemon { source, .. } => call_code(source),
        RemountError::Exited { exit, .. } => return exited(exit.cause, error),
        RemountError::Recovering { .. } => return recovering(error),
        RemountError::Stopping { .. } => Code::Stopping,
        _ => Code::Internal,
    };
    ControlError::of(code, Failure::of(error))
}

/// Why an unmount failed.
pub(super) fn unmount_error(error: &UnmountError) -> ControlError {
    let code = match error {
        UnmountError::Daemon { source, .. } => call_code(source),
        UnmountError::Exited { exit, .. } => return exited(exit.cause, error),
        UnmountError::Recovering { .. } => return recovering(error),
        UnmountError::Stopping { .. } => Code::Stopping,
        _ => Code::Internal,
    };
    ControlError::of(code, Failure::of(error))
}

/// Why a call to the daemon failed.
pub(super) fn call_error(what: &str, error: &CallError) -> ControlError {
    ControlError::of(call_code(error), Failure::new(what, error))
}

fn exited(cause: ExitCause, error: &(dyn std::error::Error + 'static)) -> ControlError {
    let failure = Failure::of(error);
    let hint =
        remedy(cause).unwrap_or("`nydusbox status` shows its last lines, `nydusbox stop` ends the sandbox");
    ControlError::of(Code::Exited, failure.hint(hint))
}

fn recovering(error: &(dyn std::error::Error + 'static)) -> ControlError {
    let hint = "`nydusbox events` shows why; once the sandbox serves again, the same can be asked again";
    ControlError::of(Code::Recovering, Failure::of(error).hint(hint))
}

fn call_code(error: &CallError) -> Code {
    match error {
        CallError::AlreadyMounted => Code::AlreadyMounted,
        CallError::SlotsExhausted => Code::SlotsExhausted,
        CallError::BadImage { .. } => Code::BadImage,
        CallError::BadConfig { .. } => Code::BadConfig,
        CallError::TimedOut { .. } | CallError::Unreachable { .. } => Code::Unreachable,
        CallError::NotMounted => Code::NotMounted,
        CallError::BadSource { .. } | CallError::Refused { .. } => Code::Refused,
        _ => Code::Internal,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use nydusbox::BindError;
    use nydusbox_protocol::MountPoint;

    use super::*;

    #[test]
    fn what_can_be_done_something_about_has_a_code_of_its_own() {
        let at = || MountPoint::new("/rafs/c1/lowerdir").unwrap();
        let after = Duration::from_secs(1);
        let bind = BindError::Occupied {
            path: "/share/c1/snapshotdir".into(),
        };
        let of_mounts = [
            (
                MountError::Snapshotdir {
                    at: at(),
                    source: bind,
                },
                Code::BadSnapshotdir,
                422,
            ),
            (MountError::NoShare { at: at() }, Code::NoShare, 422),
            (MountError::Recovering { at: at(), after }, Code::Recovering, 503),
        ];
        for (error, code, status) in of_mounts {
            let said = mount_error(&error);
            assert_eq!((said.code, said.code.status()), (code, status), "{error}");
        }
        let others = [
            remount_error(&RemountError::Recovering { at: at(), after }),
            unmount_error(&UnmountError::Recovering { at: at(), after }),
        ];
        for said in others {
            assert_eq!(said.code, Code::Recovering);
            assert!(said.hint.is_some());
        }
        // The daemon knows of no such mount, or nobody does.
        let source = CallError::NotMounted;
        for error in [
            RemountError::Daemon { at: at(), source },
            RemountError::NotMounted { at: at() },
        ] {
            let said = remount_error(&error);
            assert_eq!(
                (said.code, said.code.status()),
                (Code::NotMounted, 404),
                "{error}"
            );
        }
    }
}
