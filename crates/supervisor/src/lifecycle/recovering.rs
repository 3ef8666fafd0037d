//! From a daemon that ended to its successor that serves, if the sandbox is to have one.
//!
//! ```text
//! Serving ──Exited──> Waiting ──Elapsed──> Launching ──Launched──> Restoring ──all mounted, VMM let in──> Serving
//!                      ^  │ ^─────────────LaunchFailed│                │ │
//!                      │  └─(given up)─> Exited       │       (answer lost: kill)
//!                      └──────────────────────────────┴────────Exited──┘
//! Waiting, Launching ──Stop / Abandoned──> Ended        Restoring ──Stop / Abandoned──> Killing
//! ```
//!
//! No request is taken meanwhile; [`crate::driver`] lets them wait, each for as long as a call may take.

use nydusbox_protocol::MountPoint;

use super::{Action, Call, Lifecycle, Open, Phase, Reply, Timer};
use crate::client::CallError;
use crate::error::{MountError, UnmountError, chain};
use crate::events::{GuestOutlook, SandboxEvent};
use crate::exit::Exit;
use crate::ledger::UnmountOutcome;
use crate::recovery::Verdict;
use crate::restoration::{Restoration, Step};

/// What is known while the sandbox has no daemon that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovering {
    /// The how manieth attempt in a row, from 1.
    pub(crate) attempt: u32,
    /// How the last daemon ended.
    pub(crate) exit: Exit,
    /// Whether a VMM was, or may have been, connected to the daemon that served.
    had_vmm: bool,
}

/// A new daemon that gets its mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Restoring {
    pub(crate) recovering: Recovering,
    pid: u32,
    restoration: Restoration,
    /// It was killed because it did not do as it was told.
    killed: bool,
}

impl Restoring {
    pub(super) fn had_vmm(&self) -> bool {
        self.recovering.had_vmm
    }
}

impl Lifecycle {
    /// The daemon that served is gone, and the sandbox is to have another.
    pub(super) fn daemon_lost(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        let told = self.part_with_open(&exit, actions);
        let lost = self.ledger.daemon_is_gone().into_iter();
        actions.extend(lost.filter(|at| Some(at) != told.as_ref()).map(|at| {
            let reason = "the daemon that ended was not known to have it".to_owned();
            Action::Emit(SandboxEvent::MountLost { at, reason })
        }));
        let had_vmm = self.vmm.take() != Some(false);
        self.try_again(exit, had_vmm, actions);
    }

    fn try_again(&mut self, exit: Exit, had_vmm: bool, actions: &mut Vec<Action>) {
        let now = self.now;
        let Some(recovery) = &mut self.recovery else {
            self.phase = Phase::Exited(exit);
            return;
        };
        match recovery.ended(now) {
            Verdict::Restart { attempt, after } => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                actions.extend([
                    Action::Emit(SandboxEvent::Recovering { attempt, after_ms }),
                    Action::Arm(Timer::Backoff(after)),
                ]);
                self.phase = Phase::Waiting(Recovering {
                    attempt,
                    exit,
                    had_vmm,
                });
            }
            Verdict::GiveUp { exits } => {
                let within = recovery.policy().within();
                actions.push(Action::Emit(SandboxEvent::GaveUp {
                    exits,
                    within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                }));
                self.phase = Phase::Exited(exit);
            }
        }
    }

    /// A mount that was under way may be what the daemon died of: it fails and is not tried on the next one. An
    /// unmount has what it wanted. Where that was: whoever asked is told.
    fn part_with_open(&mut self, exit: &Exit, actions: &mut Vec<Action>) -> Option<MountPoint> {
        match self.open.take() {
            Some(Open::Unmount(at) | Open::Broken(Reply::Unmount(Err(UnmountError::Daemon { at, .. })))) => {
                self.ledger.forget(&at);
                actions.extend([
                    Action::AbandonCall,
                    Action::Emit(SandboxEvent::Unmounted { at: at.clone() }),
                    Action::Reply(Reply::Unmount(Ok(UnmountOutcome::Unmounted))),
                ]);
                Some(at)
            }
            open => {
                let at = match &open {
                    Some(
                        Open::Mount(at) | Open::Broken(Reply::Mount(Err(MountError::Daemon { at, .. }))),
                    ) => Some(at.clone()),
                    _ => None,
                };
                self.open = open;
                self.fail_open(exit, actions);
                at
            }
        }
    }

    /// The pause before an attempt is over.
    pub(super) fn launch(&mut self, recovering: Recovering, actions: &mut Vec<Action>) {
        self.phase = Phase::Launching(recovering);
        actions.push(Action::Launch);
    }

    pub(super) fn launched(&mut self, pid: u32, actions: &mut Vec<Action>) {
        let Phase::Launching(recovering) = &self.phase else {
            return;
        };
        self.phase = Phase::Restoring(Restoring {
            recovering: recovering.clone(),
            pid,
            restoration: self.ledger.restoration(),
            killed: false,
        });
        self.restore(actions);
    }

    pub(super) fn launch_failed(
        &mut self,
        reason: String,
        last_lines: Vec<String>,
        actions: &mut Vec<Action>,
    ) {
        let Phase::Launching(Recovering {
            attempt,
            exit,
            had_vmm,
        }) = self.phase.clone()
        else {
            return;
        };
        actions.push(Action::Emit(SandboxEvent::RecoveryFailed {
            attempt,
            reason,
            last_lines,
        }));
        self.try_again(exit, had_vmm, actions);
    }

    fn restore(&mut self, actions: &mut Vec<Action>) {
        let Phase::Restoring(restoring) = &self.phase else {
            return;
        };
        let step = restoring.restoration.step();
        actions.push(Action::Call(match step.clone() {
            Step::Mount(at, command) => Call::Restore(at, command),
            Step::Skip(at) => Call::Skip(at),
            Step::Admit => Call::Admit,
        }));
        self.open = Some(Open::Restore(step));
    }

    /// The new daemon has answered, or not.
    pub(super) fn answered(&mut self, step: Step, answer: Result<(), CallError>, actions: &mut Vec<Action>) {
        let Phase::Restoring(restoring) = &mut self.phase else {
            return;
        };
        let restoration = &mut restoring.restoration;
        match (step, answer) {
            (Step::Mount(..), Ok(())) => restoration.mounted(),
            (Step::Skip(_), Ok(())) => restoration.skipped(),
            (Step::Admit, Ok(())) => return self.recovered(actions),
            (Step::Mount(at, _), Err(error)) if error.is_definite() => {
                restoration.refused();
                self.ledger.forget(&at);
                let reason = chain(&error);
                actions.push(Action::Emit(SandboxEvent::MountLost { at, reason }));
            }
            (Step::Skip(_), Err(error)) if error.is_definite() => restoration.cannot_skip(),
            (Step::Mount(..) | Step::Skip(_) | Step::Admit, Err(error)) => {
                restoring.killed = true;
                actions.extend([
                    Action::Emit(SandboxEvent::RecoveryFailed {
                        attempt: restoring.recovering.attempt,
                        reason: chain(&error),
                        last_lines: Vec::new(),
                    }),
                    Action::Kill,
                ]);
                return;
            }
        }
        self.restore(actions);
    }

    fn recovered(&mut self, actions: &mut Vec<Action>) {
        let Phase::Restoring(Restoring {
            recovering,
            pid,
            restoration,
            ..
        }) = &self.phase
        else {
            return;
        };
        self.ledger.restored(restoration);
        if let Some(recovery) = &mut self.recovery {
            recovery.serves(self.now);
        }
        let guest = match (recovering.had_vmm, restoration.same_slots()) {
            (false, _) => GuestOutlook::NoVmm,
            (true, true) => GuestOutlook::ImagesIfVmmReconnects,
            (true, false) => GuestOutlook::MustMountAgain,
        };
        actions.push(Action::Emit(SandboxEvent::Recovered {
            pid: *pid,
            mounts: self.ledger.used(),
            guest,
        }));
        self.phase = Phase::Serving;
    }

    /// The new daemon has ended before it had everything.
    pub(super) fn successor_lost(&mut self, had_vmm: bool, exit: Exit, actions: &mut Vec<Action>) {
        if self.open.take().is_some() {
            actions.push(Action::AbandonCall);
        }
        self.try_again(exit, had_vmm, actions);
    }

    /// The sandbox is to end: nobody uses a new daemon that has not got everything.
    pub(super) fn stop_recovering(&mut self, actions: &mut Vec<Action>) {
        match self.phase.clone() {
            Phase::Waiting(Recovering { exit, .. }) => {
                actions.push(Action::Disarm);
                self.end_after_exit(exit, actions);
            }
            Phase::Launching(Recovering { exit, .. }) => {
                actions.push(Action::AbandonLaunch);
                self.end_after_exit(exit, actions);
            }
            Phase::Restoring(Restoring { killed, .. }) => {
                actions.push(Action::Emit(SandboxEvent::Stopping));
                if self.open.take().is_some() {
                    actions.push(Action::AbandonCall);
                }
                if killed {
                    self.phase = Phase::Killing;
                    actions.push(Action::Arm(Timer::Reap));
                } else {
                    self.kill(actions);
                }
            }
            Phase::Serving
            | Phase::Unmounting { .. }
            | Phase::Terminating
            | Phase::Killing
            | Phase::Exited(_)
            | Phase::Ended(_) => {}
        }
    }
}
