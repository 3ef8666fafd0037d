//! What is asked of the daemon: announced while it is decided, asked once it is written down, and sent before anything
//! else is done.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use nydusbox_protocol::{Endpoint, MountCommand, MountPoint};

use super::Driver;
use crate::client::{ApiClient, CallError};
use crate::lifecycle::{Call, Request};
use crate::program::ProgramKind;

impl Driver {
    /// Has the daemon wake up for what is likely to be asked of it, while that is decided and written down. It learns
    /// what to mount only after. Not a stock nydusd: one that looks between the pieces of a request answers it with
    /// 500. (Waking it by a connection of the request's own takes more than is gained.)
    pub(super) fn announce(&mut self, request: &Request) {
        if self.config.program().kind() == ProgramKind::Stock {
            return;
        }
        let Some(client) = &mut self.client else { return };
        let ledger = self.lifecycle.ledger();
        let mounted = |at: &MountPoint| ledger.iter().any(|(place, _, _)| place == at);
        match request {
            Request::Mount(request) if !mounted(request.at()) => {
                client.announce(Endpoint::Mount, request.at(), request.command());
            }
            Request::Remount(request) if mounted(request.at()) => {
                client.announce(Endpoint::Remount, request.at(), request.command());
            }
            Request::Mount(_) | Request::Remount(_) | Request::Unmount(_) => {}
        }
    }

    /// What was announced is not asked of the daemon.
    pub(super) fn withdraw(&mut self) {
        if let Some(client) = &mut self.client {
            client.withdraw();
        }
    }

    /// What has to be done before a call: what is not written down, or lacks its bind, is not mounted.
    fn prepare(&mut self, call: &Call) -> Result<(), CallError> {
        match call {
            Call::Mount(at, _) => {
                std::mem::replace(&mut self.recorded, Ok(())).map_err(not_asked)?;
                // A few lookups in two local directories, tens of microseconds: on a thread of its own it would have
                // to be waited for when the call is abandoned.
                self.binds
                    .make(at)
                    .map_err(|source| CallError::NotBound { source })
            }
            Call::Remount(..) => std::mem::replace(&mut self.recorded, Ok(())).map_err(not_asked),
            Call::Admit => self.dir.admit(self.config.program().kind()).map_err(not_asked),
            Call::Unmount(_) | Call::Restore(..) | Call::Skip(_) => Ok(()),
        }
    }

    pub(super) fn begin(&mut self, call: Call) {
        if let Call::Mount(_, command) | Call::Remount(_, command) | Call::Restore(_, command) = &call {
            // Before anything the daemon says of it is read.
            self.config.secrets().learn_config(&command.config);
        }
        let prepared = self.prepare(&call);
        let nothing = self.dir.nothing();
        let mut client = self.client.take().unwrap_or_else(|| {
            ApiClient::new(self.config.api_socket().clone(), self.config.call_deadline())
                .with_secrets(self.config.secrets())
        });
        self.call = Some(Box::pin(async move {
            let answer = match (prepared, &call) {
                (Err(error), _) => {
                    client.withdraw();
                    Err(error)
                }
                (Ok(()), Call::Mount(at, command) | Call::Restore(at, command)) => {
                    client.mount(at, command).await
                }
                (Ok(()), Call::Skip(at)) => {
                    let nothing = MountCommand::passthrough(nothing).into();
                    match client.mount(at, &nothing).await {
                        Ok(()) => client.unmount(at).await,
                        refused => refused,
                    }
                }
                (Ok(()), Call::Admit) => Ok(()),
                (Ok(()), Call::Remount(at, command)) => client.remount(at, command).await,
                (Ok(()), Call::Unmount(at)) => client.unmount(at).await,
            };
            (client, answer)
        }));
    }

    /// Has a call that was begun send its request: the rest of this turn is done while the daemon works on it.
    pub(super) async fn send(&mut self) {
        let Some(mut call) = self.call.take() else { return };
        self.call = Some(match poll_once(call.as_mut()).await {
            Some(answered) => Box::pin(std::future::ready(answered)),
            None => {
                // Not before: the daemon would begin later. A line it prints sooner wakes this task once.
                self.daemon.leave_output();
                call
            }
        });
    }
}

fn not_asked(source: impl std::error::Error + Send + Sync + 'static) -> CallError {
    let source = Box::new(source);
    CallError::NotAsked { source }
}

/// What a future yields if it does so at once. Whoever polls it next is woken for it.
async fn poll_once<T>(mut future: Pin<&mut (dyn Future<Output = T> + Send)>) -> Option<T> {
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}
