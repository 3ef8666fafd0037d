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

/// The first status of a sandbox whose driver holds these.
pub(crate) fn snapshot(lifecycle: &Lifecycle, binds: &BindBook, daemon: &Daemon) -> Status {
    let mut status = Status {
        generation: 0,
        phase: status_phase(lifecycle.phase()),
        pid: 0,
        cgroup: None,
        program_version: String::new(),
        vmm_attached: None,
        health: HealthReport::unknown(""),
        mounts: Vec::new(),
    };
    refresh(&mut status, lifecycle, binds, daemon);
    status
}

/// Has a status say what the driver holds now; whether that makes a difference. Its generation is the driver's to keep,
/// and so is the health of a daemon that goes on serving. (A mount waits for it: what stays is not made anew.)
pub(crate) fn refresh(status: &mut Status, lifecycle: &Lifecycle, binds: &BindBook, daemon: &Daemon) -> bool {
    let Status {
        generation: _,
        phase,
        pid,
        cgroup,
        program_version,
        vmm_attached,
        health,
        mounts,
    } = status;
    let mut differs = false;
    let next = status_phase(lifecycle.phase());
    if next != StatusPhase::Serving || *pid != daemon.id() {
        differs |= put(health, HealthReport::unknown(why_unknown(lifecycle.phase())));
    }
    differs |= put(phase, next);
    differs |= put(pid, daemon.id());
    differs |= put(vmm_attached, lifecycle.vmm());
    if cgroup.as_deref() != daemon.cgroup() {
        *cgroup = daemon.cgroup().map(Path::to_owned);
        differs = true;
    }
    if program_version != daemon.version() {
        daemon.version().clone_into(program_version);
        differs = true;
    }
    let source_of = |at| binds.find(at).map(|bind| bind.source.as_path());
    let entries = || lifecycle.ledger().iter();
    let pairs = mounts.iter().zip(entries());
    let stay = pairs.take_while(|(shown, (at, command, knowledge))| {
        (&shown.at, &shown.source, shown.fs_type) == (*at, &command.source, command.fs_type)
            && (shown.snapshotdir.as_deref(), shown.confirmed)
                == (source_of(at), *knowledge == Knowledge::Confirmed)
    });
    let stay = stay.count();
    if stay < mounts.len() || stay < lifecycle.ledger().used() {
        mounts.truncate(stay);
        mounts.extend(entries().skip(stay).map(|(at, command, knowledge)| MountStatus {
            at: at.clone(),
            fs_type: command.fs_type,
            source: command.source.clone(),
            snapshotdir: source_of(at).map(Path::to_owned),
            confirmed: knowledge == Knowledge::Confirmed,
        }));
        differs = true;
    }
    differs
}

/// Puts a value in its place; whether that makes a difference.
fn put<T: PartialEq>(place: &mut T, value: T) -> bool {
    let differs = *place != value;
    *place = value;
    differs
}

/// Why nothing is known of the health of a daemon in this phase, until it is observed.
fn why_unknown(phase: &Phase) -> &'static str {
    match phase {
        Phase::Serving => "not observed yet",
        Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => "the daemon is being replaced",
        Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing => "the sandbox is being stopped",
        Phase::Exited(_) | Phase::Ended(_) => "the daemon is gone",
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
