//! The life of a running daemon as a pure machine: events in, actions out.
//!
//! ```text
//! Serving ──Stop──> Unmounting ──all asked away / Elapsed──> Terminating ──Elapsed──> Killing ──Elapsed──> Ended
//!    │                  │  └───────(ending: kill)──────────────────────────────────────>│                   ^
//!    ├──Exited──> Exited ──Stop / Abandoned──────────────────────────────────────────────────────────────────┤
//!    └──Abandoned──> Killing      Unmounting, Terminating, Killing ──Exited──────────────────────────────────┘
//!                                 Unmounting, Terminating ──Abandoned──> Killing
//! ```
//!
//! With a policy that restarts, `Serving ──Exited` leads elsewhere: see [`recovering`].
//!
//! One call to the daemon is under way at most. It knows no clock, no socket and no process; the driver
//! ([`crate::driver`]) carries the actions out and feeds the events.

mod recovering;
mod words;

use std::time::Duration;

use nydusbox_protocol::MountPoint;

use crate::client::CallError;
use crate::error::{MountError, RemountError, UnmountError};
use crate::events::SandboxEvent;
use crate::exit::Exit;
use crate::ledger::{Admission, Ledger, Refusal, RemountRefusal, UnmountOutcome};
use crate::recovery::Recovery;
use crate::request::MountRequest;
use crate::restoration::Step;
use crate::slots::{SLOTS, SLOTS_LOW};
use crate::stop::{Ending, StopStep};
use recovering::{Recovering, Restoring};
pub use words::MountOutcome;
pub(crate) use words::{Action, Call, Event, Reply, Request, Timer};

/// Where the daemon is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    Unmounting {
        ending: Ending,
        /// Places not asked away yet, the next one last.
        remaining: Vec<MountPoint>,
    },
    Terminating,
    Killing,
    /// It ended; after a pause another one is started.
    Waiting(Recovering),
    /// Another one is being started.
    Launching(Recovering),
    /// The other one gets the mounts.
    Restoring(Restoring),
    /// Ended by itself.
    Exited(Exit),
    /// Nothing more to do.
    Ended(Option<Exit>),
}

/// Whose call is under way.
#[derive(Debug)]
enum Open {
    Mount(MountPoint),
    Remount(MountRequest),
    Unmount(MountPoint),
    /// The stop's own.
    Farewell(MountPoint),
    /// The recovery's own.
    Restore(Step),
    /// The request's connection broke; its reply waits for the exit to show.
    Broken(Reply),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: Phase,
    ledger: Ledger,
    /// `None` when an exit is final.
    recovery: Option<Recovery>,
    /// Whether a VMM is connected, when that is known.
    vmm: Option<bool>,
    now: Duration,
    open: Option<Open>,
    body_limit_bytes: usize,
    /// It was said that slots become scarce.
    slots_low: bool,
    unmount_failures: Vec<(MountPoint, CallError)>,
}

impl Lifecycle {
    /// A daemon that serves the mounts in `ledger` and reads requests of at most `body_limit_bytes`.
    pub(crate) fn serving(ledger: Ledger, body_limit_bytes: usize) -> Self {
        Self {
            phase: Phase::Serving,
            ledger,
            recovery: None,
            vmm: None,
            now: Duration::ZERO,
            open: None,
            body_limit_bytes,
            slots_low: false,
            unmount_failures: Vec::new(),
        }
    }

    /// The same, with a daemon that is replaced when it ends.
    pub(crate) fn with_recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = Some(recovery);
        self
    }

    /// Sets the clock, which counts from any fixed point, for the next step.
    pub(crate) fn at(&mut self, now: Duration) -> &mut Self {
        self.now = now;
        self
    }

    /// Whether a VMM is connected; `None` when that cannot be known.
    pub(crate) fn vmm(&self) -> Option<bool> {
        self.vmm
    }

    /// Whether there is no daemon that serves, but may be one later.
    pub(crate) fn is_recovering(&self) -> bool {
        match self.phase {
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => true,
            Phase::Serving
            | Phase::Unmounting { .. }
            | Phase::Terminating
            | Phase::Killing
            | Phase::Exited(_)
            | Phase::Ended(_) => false,
        }
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether a request may be fed now. Requests beyond the one that is open wait outside.
    pub(crate) fn takes_requests(&self) -> bool {
        match self.open {
            None | Some(Open::Farewell(_)) => !self.is_recovering(),
            Some(
                Open::Mount(_) | Open::Remount(_) | Open::Unmount(_) | Open::Restore(_) | Open::Broken(_),
            ) => false,
        }
    }

    pub(crate) fn take_unmount_failures(&mut self) -> Vec<(MountPoint, CallError)> {
        std::mem::take(&mut self.unmount_failures)
    }

    /// Takes an event, says what to do about it.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Request(request) => self.request(request, &mut actions),
            Event::Answer(answer) => self.answer(answer, &mut actions),
            Event::Exited(exit) => self.exited(exit, &mut actions),
            Event::Launched(pid) => self.launched(pid, &mut actions),
            Event::LaunchFailed { reason, last_lines } => {
                self.launch_failed(reason, last_lines, &mut actions);
            }
            Event::Vmm(attached) => self.vmm_seen(attached, &mut actions),
            Event::Told(reported) => {
                let confirmed = self.ledger.told(&reported).into_iter();
                actions.extend(confirmed.map(|at| Action::Emit(SandboxEvent::Mounted { at })));
            }
            Event::Stop(ending) => self.stop(ending, &mut actions),
            Event::Abandoned => self.abandoned(&mut actions),
            Event::Elapsed => self.elapsed(&mut actions),
        }
        actions
    }

    fn request(&mut self, request: Request, actions: &mut Vec<Action>) {
        let reply = match (&self.phase, request) {
            (Phase::Serving, Request::Mount(request)) => match self.admit(&request) {
                Ok(Admission::Ask) => {
                    let (at, command) = (request.at().clone(), request.command().clone());
                    self.open = Some(Open::Mount(at.clone()));
                    actions.push(Action::Call(Call::Mount(at, command)));
                    return;
                }
                Ok(Admission::Present) => Reply::Mount(Ok(MountOutcome::AlreadyMounted)),
                Err(error) => Reply::Mount(Err(error)),
            },
            (Phase::Serving, Request::Remount(request)) => match self.admit_remount(&request) {
                Ok(()) => {
                    let (at, command) = (request.at().clone(), request.command().clone());
                    self.open = Some(Open::Remount(request));
                    actions.push(Action::Call(Call::Remount(at, command)));
                    return;
                }
                Err(error) => Reply::Remount(Err(error)),
            },
            (Phase::Serving, Request::Unmount(at)) => {
                self.open = Some(Open::Unmount(at.clone()));
                actions.push(Action::Call(Call::Unmount(at)));
                return;
            }
            (Phase::Exited(exit), request) => gone(request, exit),
            // Not taken in these phases.
            (Phase::Waiting(recovering) | Phase::Launching(recovering), request) => {
                gone(request, &recovering.exit)
            }
            (Phase::Restoring(restoring), request) => gone(request, &restoring.recovering.exit),
            (Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing | Phase::Ended(_), request) => {
                stopping(request)
            }
        };
        actions.push(Action::Reply(reply));
    }

    fn admit(&mut self, request: &MountRequest) -> Result<Admission, MountError> {
        let at = request.at().clone();
        if let Some(len_bytes) = self.too_large(request) {
            return Err(MountError::TooLarge {
                at,
                len_bytes,
                limit_bytes: self.body_limit_bytes,
            });
        }
        self.ledger.admit(request).map_err(|refusal| match refusal {
            Refusal::Conflict => MountError::Conflict { at },
            Refusal::Overlaps(with) => MountError::Overlaps { at, with },
            Refusal::Full => MountError::SlotsExhausted { at },
        })
    }

    fn admit_remount(&mut self, request: &MountRequest) -> Result<(), RemountError> {
        let at = request.at().clone();
        if let Some(len_bytes) = self.too_large(request) {
            return Err(RemountError::TooLarge {
                at,
                len_bytes,
                limit_bytes: self.body_limit_bytes,
            });
        }
        self.ledger
            .admit_remount(request)
            .map_err(|refusal| match refusal {
                RemountRefusal::NotMounted => RemountError::NotMounted { at },
                RemountRefusal::NotAnImage => RemountError::NotAnImage { at },
            })
    }

    /// The length of a request that is longer than the daemon reads.
    fn too_large(&self, request: &MountRequest) -> Option<usize> {
        Some(request.command().json().len()).filter(|&len| len > self.body_limit_bytes)
    }

    fn answer(&mut self, answer: Result<(), CallError>, actions: &mut Vec<Action>) {
        let broken = matches!(answer, Err(CallError::Unreachable { .. }));
        let reply = match self.open.take() {
            Some(Open::Mount(at)) => Reply::Mount(match self.ledger.settle_mount(&at, answer) {
                Ok(()) => {
                    actions.push(Action::Emit(SandboxEvent::Mounted { at }));
                    self.warn_of_slots(actions);
                    Ok(MountOutcome::Mounted)
                }
                Err(CallError::NotBound { source }) => Err(MountError::Snapshotdir { at, source }),
                Err(source) => Err(MountError::Daemon { at, source }),
            }),
            Some(Open::Remount(request)) => {
                let at = request.at().clone();
                Reply::Remount(match self.ledger.settle_remount(&request, answer) {
                    Ok(()) => {
                        actions.push(Action::Emit(SandboxEvent::Remounted { at }));
                        Ok(())
                    }
                    Err(source) => Err(RemountError::Daemon { at, source }),
                })
            }
            Some(Open::Unmount(at)) => Reply::Unmount(
                self.settle_unmount(&at, answer, actions)
                    .map_err(|source| UnmountError::Daemon { at, source }),
            ),
            Some(Open::Farewell(at)) => {
                if let Err(error) = self.settle_unmount(&at, answer, actions) {
                    self.unmount_failures.push((at, error));
                }
                return self.next_farewell(broken, actions);
            }
            Some(Open::Restore(step)) => return self.answered(step, answer, actions),
            // No call is under way, so nothing can be answered.
            held @ (Some(Open::Broken(_)) | None) => {
                self.open = held;
                return;
            }
        };
        if broken && self.phase == Phase::Serving {
            self.open = Some(Open::Broken(reply));
            actions.push(Action::Arm(Timer::ExitShows));
            return;
        }
        actions.push(Action::Reply(reply));
        if matches!(self.phase, Phase::Unmounting { .. }) {
            self.next_farewell(broken, actions);
        }
    }

    fn settle_unmount(
        &mut self,
        at: &MountPoint,
        answer: Result<(), CallError>,
        actions: &mut Vec<Action>,
    ) -> Result<UnmountOutcome, CallError> {
        let outcome = self.ledger.settle_unmount(at, answer)?;
        self.slots_low &= self.ledger.used() >= SLOTS_LOW;
        match outcome {
            UnmountOutcome::Unmounted => {
                actions.push(Action::Emit(SandboxEvent::Unmounted { at: at.clone() }));
            }
            UnmountOutcome::WasNotMounted => {}
        }
        Ok(outcome)
    }

    /// Warns once each time the mounts become many.
    fn warn_of_slots(&mut self, actions: &mut Vec<Action>) {
        let used = self.ledger.used();
        if used >= SLOTS_LOW && !std::mem::replace(&mut self.slots_low, true) {
            actions.push(Action::Emit(SandboxEvent::SlotsLow { used, of: SLOTS }));
        }
    }

    fn exited(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        let ended_by_itself = |exit: &Exit| Action::Emit(SandboxEvent::Exited { exit: exit.clone() });
        let step = match &self.phase {
            Phase::Serving => {
                actions.extend([ended_by_itself(&exit), Action::Disarm]);
                if self.recovery.is_some() {
                    self.daemon_lost(exit, actions);
                } else {
                    self.fail_open(&exit, actions);
                    self.phase = Phase::Exited(exit);
                }
                return;
            }
            Phase::Restoring(restoring) => {
                actions.push(ended_by_itself(&exit));
                let had_vmm = restoring.had_vmm();
                return self.successor_lost(had_vmm, exit, actions);
            }
            Phase::Unmounting { .. } => {
                actions.push(ended_by_itself(&exit));
                self.fail_open(&exit, actions);
                StopStep::AlreadyGone { exit: exit.clone() }
            }
            Phase::Terminating => StopStep::Exited { status: exit.cause },
            Phase::Killing => StopStep::Killed,
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Exited(_) | Phase::Ended(_) => return,
        };
        self.phase = Phase::Ended(Some(exit));
        actions.push(Action::Finish(step));
    }

    /// That none was connected is not known any more.
    pub(crate) fn vmm_may_have_come(&mut self) {
        self.vmm = self.vmm.filter(|attached| *attached);
    }

    fn vmm_seen(&mut self, attached: bool, actions: &mut Vec<Action>) {
        let before = self.vmm.replace(attached);
        match (before, attached) {
            (Some(true), false) => actions.push(Action::Emit(SandboxEvent::VmmLeft)),
            (None | Some(false), true) => actions.push(Action::Emit(SandboxEvent::VmmConnected)),
            (None | Some(false), false) | (Some(true), true) => {}
        }
    }

    fn stop(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Serving => {
                // Asked away in reverse order: images before the share they may refer to.
                let remaining = self.ledger.iter().map(|(at, _, _)| at.clone()).collect();
                self.phase = Phase::Unmounting { ending, remaining };
                actions.extend([Action::Emit(SandboxEvent::Stopping), Action::Arm(Timer::Unmount)]);
                match self.open.take() {
                    None => self.next_farewell(false, actions),
                    Some(Open::Broken(reply)) => {
                        actions.push(Action::Reply(reply));
                        self.next_farewell(true, actions);
                    }
                    open @ Some(
                        Open::Mount(_)
                        | Open::Remount(_)
                        | Open::Unmount(_)
                        | Open::Farewell(_)
                        | Open::Restore(_),
                    ) => self.open = open,
                }
            }
            Phase::Exited(exit) => self.end_after_exit(exit.clone(), actions),
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => self.stop_recovering(actions),
            Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing | Phase::Ended(_) => {}
        }
    }

    fn abandoned(&mut self, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Serving => {
                actions.push(Action::Emit(SandboxEvent::Stopping));
                self.stop_open(actions);
                self.kill(actions);
            }
            Phase::Unmounting { .. } | Phase::Terminating => {
                self.stop_open(actions);
                self.kill(actions);
            }
            Phase::Exited(exit) => self.end_after_exit(exit.clone(), actions),
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => self.stop_recovering(actions),
            Phase::Killing | Phase::Ended(_) => {}
        }
    }

    fn elapsed(&mut self, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Serving => {
                if let Some(Open::Broken(reply)) = self.open.take() {
                    actions.push(Action::Reply(reply));
                }
            }
            Phase::Waiting(recovering) => self.launch(recovering.clone(), actions),
            Phase::Unmounting { ending, .. } => {
                let ending = *ending;
                self.stop_open(actions);
                self.end(ending, actions);
            }
            Phase::Terminating => self.kill(actions),
            Phase::Killing => {
                self.phase = Phase::Ended(None);
                actions.push(Action::Finish(StopStep::Unkillable));
            }
            Phase::Launching(_) | Phase::Restoring(_) | Phase::Exited(_) | Phase::Ended(_) => {}
        }
    }

    /// Asks the next mount away, or goes on when there is none or the daemon cannot be reached.
    fn next_farewell(&mut self, broken: bool, actions: &mut Vec<Action>) {
        let Phase::Unmounting { ending, remaining } = &mut self.phase else {
            return;
        };
        let ending = *ending;
        match remaining.pop().filter(|_| !broken) {
            Some(at) => {
                self.open = Some(Open::Farewell(at.clone()));
                actions.push(Action::Call(Call::Unmount(at)));
            }
            None => self.end(ending, actions),
        }
    }

    fn end(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        match ending {
            Ending::Ask => {
                self.phase = Phase::Terminating;
                actions.extend([Action::Terminate, Action::Arm(Timer::Grace)]);
            }
            Ending::Kill => self.kill(actions),
        }
    }

    fn kill(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Killing;
        actions.extend([Action::Kill, Action::Arm(Timer::Reap)]);
    }

    fn end_after_exit(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended(Some(exit.clone()));
        actions.push(Action::Emit(SandboxEvent::Stopping));
        actions.push(Action::Finish(StopStep::AlreadyGone { exit }));
    }

    /// Fails the open request with the exit, instead of with what its connection says.
    fn fail_open(&mut self, exit: &Exit, actions: &mut Vec<Action>) {
        let reply = match self.open.take() {
            Some(Open::Mount(at) | Open::Broken(Reply::Mount(Err(MountError::Daemon { at, .. })))) => {
                Reply::Mount(Err(MountError::Exited {
                    at,
                    exit: exit.clone(),
                }))
            }
            Some(Open::Broken(Reply::Remount(Err(RemountError::Daemon { at, .. })))) => {
                Reply::Remount(Err(RemountError::Exited {
                    at,
                    exit: exit.clone(),
                }))
            }
            Some(Open::Remount(request)) => gone(Request::Remount(request), exit),
            Some(Open::Unmount(at) | Open::Broken(Reply::Unmount(Err(UnmountError::Daemon { at, .. })))) => {
                Reply::Unmount(Err(UnmountError::Exited {
                    at,
                    exit: exit.clone(),
                }))
            }
            Some(Open::Broken(reply)) => reply,
            Some(Open::Farewell(_) | Open::Restore(_)) => {
                actions.push(Action::AbandonCall);
                return;
            }
            None => return,
        };
        actions.extend([Action::AbandonCall, Action::Reply(reply)]);
    }

    /// Gives the call under way up because the sandbox is being stopped.
    fn stop_open(&mut self, actions: &mut Vec<Action>) {
        let reply = match self.open.take() {
            None => return,
            Some(Open::Farewell(_) | Open::Restore(_)) => None,
            Some(Open::Mount(at)) => Some(Reply::Mount(Err(MountError::Stopping { at }))),
            Some(Open::Remount(request)) => Some(stopping(Request::Remount(request))),
            Some(Open::Unmount(at)) => Some(Reply::Unmount(Err(UnmountError::Stopping { at }))),
            Some(Open::Broken(reply)) => Some(reply),
        };
        actions.push(Action::AbandonCall);
        actions.extend(reply.map(Action::Reply));
    }
}

fn gone(request: Request, exit: &Exit) -> Reply {
    let exit = exit.clone();
    match request {
        Request::Mount(request) => Reply::Mount(Err(MountError::Exited {
            at: request.at().clone(),
            exit,
        })),
        Request::Remount(request) => Reply::Remount(Err(RemountError::Exited {
            at: request.at().clone(),
            exit,
        })),
        Request::Unmount(at) => Reply::Unmount(Err(UnmountError::Exited { at, exit })),
    }
}

fn stopping(request: Request) -> Reply {
    match request {
        Request::Mount(request) => Reply::Mount(Err(MountError::Stopping {
            at: request.at().clone(),
        })),
        Request::Remount(request) => Reply::Remount(Err(RemountError::Stopping {
            at: request.at().clone(),
        })),
        Request::Unmount(at) => Reply::Unmount(Err(UnmountError::Stopping { at })),
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
