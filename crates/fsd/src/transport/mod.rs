//! The vhost-user transport of the virtio-fs device: from the frontend's socket to descriptor chains.
//!
//! `listener` accepts frontends, `handler` applies their messages to the `session` and the `ring`s, `memory` is
//! the guest's memory, and the workers of `pool` take requests off the rings and give them to the FUSE server.
//! Specifications: vhost-user (QEMU interop documents), virtio 1.2 section 2.7 and 5.11.

mod chain;
mod device;
mod handler;
mod headcount;
mod listener;
mod memory;
mod monitor;
mod polling;
mod pool;
mod ring;
mod session;
mod split;
mod worker;

#[cfg(test)]
pub(crate) use chain::testing;
pub(crate) use chain::{Chain, Segment};
pub(crate) use device::Device;
pub(crate) use listener::Listener;
pub(crate) use pool::PoolConfig;
pub(crate) use ring::Ring;
