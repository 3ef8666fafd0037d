//! Says on the host why reads of the image fail: the guest is told EIO, and nothing else.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nydusbox::{EventItem, Sandbox, SandboxEvent};
use nydusbox_protocol::{Endpoint, SocketPath};
use serde::Deserialize;
use tokio::time::timeout;

use crate::control::ask_daemon;
use crate::error::say;

/// What a daemon gets to answer. One that is stopped, or hangs, must not keep a run from its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was said. Once is enough: what comes later is in the daemon's log.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    said: AtomicBool,
}

/// What the daemon remembers of what went wrong.
#[derive(Debug, Deserialize)]
struct Remembered {
    errors: Vec<String>,
}

impl Complaints {
    /// Speaks up as soon as it is seen that reads fail.
    pub(super) async fn follow(&self, sandbox: &Sandbox) -> Infallible {
        let mut events = sandbox.events();
        while let Some(item) = events.next().await {
            if let EventItem::Record(record) = item
                && matches!(record.event, SandboxEvent::BackendErrors { .. })
            {
                self.say(sandbox).await;
            }
        }
        std::future::pending().await
    }

    /// Speaks up if anything went wrong so far.
    pub(super) async fn say(&self, sandbox: &Sandbox) {
        let Some(last) = last_error(sandbox.api_socket()).await else {
            return;
        };
        if !self.said.swap(true, Ordering::Relaxed) {
            // The daemon puts the time before it.
            let why = last.split_once(" GMT - ").map_or(last.as_str(), |(_, why)| why);
            say(format_args!(
                "warning: reads of the image fail: {}",
                why.trim_end()
            ));
        }
    }
}

async fn last_error(api: &SocketPath) -> Option<String> {
    let asked = ask_daemon::<Remembered>(api, Endpoint::Events.path());
    timeout(PATIENCE, asked).await.ok()??.errors.pop()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let _listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(last_error(&SocketPath::new(socket).unwrap()).await, None);
    }
}
