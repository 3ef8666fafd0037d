//! Real machines: QEMU with Debian's kernel, on a genuine daemon or driven by the command `run`.
//!
//! - [`virtiofsd`]: a directory tree served by virtiofsd, for what a machine does whatever serves it;
//! - [`posix`]: pjdfstest and fsx in such a machine;
//! - [`nydusd`]: a RAFS image and a share served by nydusd, laid out as Kata does;
//! - [`run`]: the command under test boots the machine itself, on a Debian image;
//! - [`listing`]: a directory tree as a program sees it, here or in a machine;
//! - [`sink`]: what the machine's command wrote; [`prerequisites`]: what must be there, and skips.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod listing;
pub mod nydusd;
pub mod posix;
pub mod prerequisites;
pub mod run;
pub mod sink;
pub mod virtiofsd;
