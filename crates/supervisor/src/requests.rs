//! Requests on their way from the sandbox's handle to its driver, and those that wait because there is no daemon.

use std::collections::VecDeque;
use std::time::Duration;

use nydusbox_protocol::MountPoint;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::error::{MountError, RemountError, UnmountError};
use crate::ledger::UnmountOutcome;
use crate::lifecycle::MountOutcome;
use crate::request::MountRequest;

/// How many wait at most while there is no daemon; further ones wait in their callers.
const WAITING_MAX: usize = 1024;

/// A request with the place for its reply.
#[derive(Debug)]
pub(crate) enum Envelope {
    Mount(MountRequest, oneshot::Sender<Result<MountOutcome, MountError>>),
    Remount(MountRequest, oneshot::Sender<Result<(), RemountError>>),
    Unmount(MountPoint, oneshot::Sender<Result<UnmountOutcome, UnmountError>>),
}

impl Envelope {
    /// Refuses it because it has waited for so long. A receiver that is gone was dropped by its caller.
    fn refuse(self, after: Duration) {
        match self {
            Self::Mount(request, reply) => {
                let at = request.at().clone();
                drop(reply.send(Err(MountError::Recovering { at, after })));
            }
            Self::Remount(request, reply) => {
                let at = request.at().clone();
                drop(reply.send(Err(RemountError::Recovering { at, after })));
            }
            Self::Unmount(at, reply) => drop(reply.send(Err(UnmountError::Recovering { at, after }))),
        }
    }
}

/// The driver's end.
#[derive(Debug)]
pub(crate) struct Requests {
    incoming: mpsc::Receiver<Envelope>,
    /// Those that came while there was no daemon, with the end of their time.
    waiting: VecDeque<(Instant, Envelope)>,
    patience: Duration,
}

impl Requests {
    /// A request waits for a daemon for `patience` at most.
    pub(crate) fn new(incoming: mpsc::Receiver<Envelope>, patience: Duration) -> Self {
        Self {
            incoming,
            waiting: VecDeque::new(),
            patience,
        }
    }

    /// The next request, in the order they came, or `None` when nobody is left who could send one. While the daemon
    /// is `away` there is none: they wait, and those that have waited too long are refused. Cancel safe.
    pub(crate) async fn next(&mut self, away: bool) -> Option<Envelope> {
        if away {
            self.collect().await;
        }
        match self.waiting.pop_front() {
            Some((_, envelope)) => Some(envelope),
            None => self.incoming.recv().await,
        }
    }

    async fn collect(&mut self) {
        loop {
            let overdue = self.waiting.front().map(|(until, _)| *until);
            tokio::select! {
                biased;
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    if let Some((_, envelope)) = self.waiting.pop_front() {
                        envelope.refuse(self.patience);
                    }
                }
                Some(envelope) = self.incoming.recv(), if self.waiting.len() < WAITING_MAX => {
                    self.waiting.push_back((Instant::now() + self.patience, envelope));
                }
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn unmount(n: u32) -> (Envelope, oneshot::Receiver<Result<UnmountOutcome, UnmountError>>) {
        let (reply, answer) = oneshot::channel();
        let at = MountPoint::new(format!("/m{n}")).unwrap();
        (Envelope::Unmount(at, reply), answer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_time_and_those_left_come_out_in_order() {
        let (sender, incoming) = mpsc::channel(16);
        let mut requests = Requests::new(incoming, Duration::from_secs(30));
        let (early, refused) = unmount(0);
        sender.send(early).await.unwrap();
        let pause = Duration::from_secs(20);
        assert!(tokio::time::timeout(pause, requests.next(true)).await.is_err());
        let mut answers = Vec::new();
        for n in 1..4 {
            let (envelope, answer) = unmount(n);
            sender.send(envelope).await.unwrap();
            answers.push(answer);
        }
        assert!(tokio::time::timeout(pause, requests.next(true)).await.is_err());
        assert!(matches!(
            refused.await.unwrap(),
            Err(UnmountError::Recovering { after, .. }) if after == Duration::from_secs(30)
        ));
        drop(sender);
        for n in 1..4 {
            let Some(Envelope::Unmount(at, _)) = requests.next(false).await else {
                panic!()
            };
            assert_eq!(at.as_str(), format!("/m{n}"));
        }
        assert!(requests.next(false).await.is_none());
    }
}
