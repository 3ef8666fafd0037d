//! What is published of a running sandbox, from what its driver holds.
//!
//! Pure. When it is published says [`crate::driver`].

use std::path::Path;

use crate::binds::BindBook;
use crate::daemon::Daemon;
use crate::health::HealthReport;
use crate::ledger::Knowledge;
use crate::lifecycle::{Lifecycle, Phase};
use crate::status::{MountStatus, Status, StatusPhase};

/// The status of a sandbox whose driver holds these; its health is the driver's to keep.
pub(crate) fn snapshot(generation: u64, lifecycle: &Lifecycle, binds: &BindBook, daemon: &Daemon) -> Status {
    let mounts = lifecycle
        .ledger()
        .iter()
        .map(|(at, command, knowledge)| MountStatus {
            at: at.clone(),
            fs_type: command.fs_type,
            source: command.source.clone(),
            snapshotdir: binds.find(at).map(|bind| bind.source.clone()),
            confirmed: knowledge == Knowledge::Confirmed,
        });
    Status {
        generation,
        phase: status_phase(lifecycle.phase()),
        pid: daemon.id(),
        cgroup: daemon.cgroup().map(Path::to_owned),
        program_version: daemon.version().to_owned(),
        vmm_attached: lifecycle.vmm(),
        health: HealthReport::unknown(match lifecycle.phase() {
            Phase::Serving => "not observed yet",
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => "the daemon is being replaced",
            Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing => "the sandbox is being stopped",
            Phase::Exited(_) | Phase::Ended(_) => "the daemon is gone",
        }),
        mounts: mounts.collect(),
    }
}

/// A phase as it is shown.
pub(crate) fn status_phase(phase: &Phase) -> StatusPhase {
    match phase {
        Phase::Serving => StatusPhase::Serving,
        Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing => StatusPhase::Stopping,
        Phase::Waiting(recovering) | Phase::Launching(recovering) => StatusPhase::Recovering {
            attempt: recovering.attempt,
        },
        Phase::Restoring(restoring) => StatusPhase::Recovering {
            attempt: restoring.recovering.attempt,
        },
        Phase::Exited(exit) => StatusPhase::Exited(exit.clone()),
        Phase::Ended(exit) => StatusPhase::Stopped(exit.clone()),
    }
}
