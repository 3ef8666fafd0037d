//! Says on the host why reads of the image fail: the guest is told EIO, and nothing else.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use nydusbox::{EventItem, Sandbox, SandboxEvent};
use nydusbox_protocol::Endpoint;
use serde::Deserialize;

use super::say;
use crate::control::ask_daemon;

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
        let asked = ask_daemon::<Remembered>(sandbox.api_socket(), Endpoint::Events.path());
        let Some(last) = asked.await.and_then(|mut remembered| remembered.errors.pop()) else {
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
