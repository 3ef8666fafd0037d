//! Development tools: everything needed to prove a virtio-fs daemon without a virtual machine.
//!
//! - [`guest`]: a simulated guest, that is a vhost-user frontend on a memfd which speaks FUSE;
//! - [`daemon`], [`virtiofsd`], [`http`]: the daemon under test as a process, virtiofsd as one, and a client for the API;
//! - [`peers`]: where the genuine programs are that behaviour is compared with;
//! - [`tree`], [`image`], [`blob_server`]: source trees, RAFS images made of them, a server for their blobs;
//! - [`registry`], [`registry_proxy`]: a genuine registry, and what makes it slow, picky or wrong;
//! - [`machine`]: real machines under QEMU;
//! - [`mod@bench`]: daemons side by side under load, measured;
//! - [`bench_image`]: what conversions of images and starts from them cost;
//! - [`bench_supervisor`]: what starts, mounts, stops and sandboxes cost;
//! - [`chaos`]: everything that can happen to a cold image, at once;
//! - [`leak`]: what a test must not leave behind;
//! - [`suite`]: one set of behaviours that runs against our daemon and the genuine one.
//!
//! Nothing here is ever shipped. The library, `nydusbox-rootfs` and `nydusbox-vmm` are used here, but nothing of the
//! daemon's code: what the tests believe about the wire formats is written down a second time on purpose.

#![forbid(unsafe_code)]

pub mod bench;
pub mod bench_image;
pub mod bench_supervisor;
pub mod blob_server;
pub mod caching_proxy;
pub mod chaos;
pub mod daemon;
pub mod guest;
pub mod http;
pub mod image;
pub mod leak;
pub mod machine;
pub mod packed;
pub mod peers;
pub mod registry;
pub mod registry_proxy;
pub mod skopeo;
pub mod suite;
pub mod tree;
pub mod virtiofsd;
