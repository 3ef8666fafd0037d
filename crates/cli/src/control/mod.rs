//! `control.sock`: how commands talk to the process that owns a sandbox. docs/control.md is its reference.
//!
//! `wire.rs` is what both ends agree on, `presence.rs` finds out who owns a sandbox, `client.rs` is the commands'
//! end, `server.rs` and `body.rs` the supervisor's. What a request does is decided in `supervise/`.

mod body;
mod client;
mod presence;
mod server;
pub(crate) mod wire;

pub(crate) use body::{Answer, Lines};
pub(crate) use client::{ANSWERS_WITHIN, Client, ask_daemon, ask_daemon_for_text};
pub(crate) use presence::{Presence, no_answer, owner_of};
pub(crate) use server::{Handler, serve};
