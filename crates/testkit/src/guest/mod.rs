//! The simulated guest: a vhost-user-fs frontend and virtio driver in this process, without a VM.
//!
//! ```text
//! fuse::FuseClient      typed FUSE calls, path helpers
//!   transport::SimGuest requests in, replies out; any number in flight
//!     queue::SplitQueue one split virtqueue, driver side
//!       ring            its arithmetic and layout, pure
//!     mem::GuestRam     the guest's memory: one memfd, two regions
//!     handshake         the vhost-user messages, each under a deadline
//! raw                   the same guest being hostile
//! ```
//!
//! Start reading at [`transport`].

pub mod deadline;
pub mod error;
pub mod fuse;
mod handshake;
pub mod mem;
pub mod queue;
pub mod raw;
pub mod request;
pub mod ring;
pub mod transport;

pub use deadline::Deadline;
pub use error::GuestError;
pub use fuse::{FuseClient, FuseError};
pub use request::{Lane, Reply, Request, Ticket};
pub use transport::{GuestConfig, SimGuest};
