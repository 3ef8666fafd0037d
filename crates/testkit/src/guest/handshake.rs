//! The vhost-user messages of a frontend, each bounded in time.
//!
//! The vhost crate blocks in `recvmsg` and retries on EAGAIN, so a socket timeout does not help: a
//! watchdog thread shuts the socket down instead, which ends the read. Never touches a ring.

use std::fmt;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::deadline::Deadline;
use super::error::GuestError;
use super::mem::GuestRam;
use super::queue::SplitQueue;
use super::transport::GuestConfig;

/// What both ends agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio feature bits the backend offered.
    pub offered: u64,
    /// Virtio feature bits in use.
    pub features: u64,
    /// Protocol feature bits the backend offered.
    pub protocol_offered: u64,
    /// Protocol feature bits in use.
    pub protocol: u64,
    /// Queues the backend has, or what we wanted if it cannot say.
    pub queues: u64,
}

impl Negotiated {
    /// Whether EVENT_IDX is in use.
    pub fn event_idx(&self) -> bool {
        self.features & bit(VIRTIO_RING_F_EVENT_IDX) != 0
    }

    /// Whether indirect descriptors are in use.
    pub fn indirect(&self) -> bool {
        self.features & bit(VIRTIO_RING_F_INDIRECT_DESC) != 0
    }

    /// Whether a vhost-user protocol feature is in use.
    pub fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol & feature.bits() != 0
    }
}

fn bit(n: u32) -> u64 {
    1 << n
}

/// The connection to the backend.
pub(super) struct Link {
    pub(super) frontend: Frontend,
    /// The same socket: to shut it down and to write garbage to it.
    pub(super) stream: UnixStream,
    /// Our end of the backend's own request channel.
    backend_requests: Option<UnixStream>,
    timeout: Duration,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn connect(socket: &Path, timeout: Duration, queues: u64) -> Result<Self, GuestError> {
        let connect = |source| GuestError::Connect {
            path: socket.to_owned(),
            source,
        };
        let stream = UnixStream::connect(socket).map_err(connect)?;
        let frontend = Frontend::from_stream(stream.try_clone().map_err(connect)?, queues);
        Ok(Self {
            frontend,
            stream,
            backend_requests: None,
            timeout,
        })
    }

    /// Sends one message (and reads its answer) within the timeout.
    fn call<T>(
        &mut self,
        request: &'static str,
        message: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, GuestError> {
        let deadline = Deadline::after(self.timeout);
        let stream = &self.stream;
        let frontend = &mut self.frontend;
        let timeout = self.timeout;
        let (result, fired) = std::thread::scope(|scope| {
            let (done, wait) = mpsc::channel::<()>();
            let watchdog = scope.spawn(move || {
                let late = wait.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
                // The socket may be gone already; then there is nothing to end.
                late && stream.shutdown(Shutdown::Both).is_ok()
            });
            let result = message(frontend);
            drop(done);
            (result, watchdog.join().unwrap_or(false))
        });
        match result {
            Ok(value) => Ok(value),
            Err(_) if fired => Err(deadline.missed(request)),
            Err(source) => Err(GuestError::Handshake { request, source }),
        }
    }

    /// From SET_OWNER to SET_FEATURES and the memory table.
    pub(super) fn negotiate(
        &mut self,
        config: &GuestConfig,
        ram: &GuestRam,
    ) -> Result<Negotiated, GuestError> {
        let wanted = u64::from(config.request_queues) + 1;
        self.call("SET_OWNER", |f| f.set_owner())?;
        let offered = self.call("GET_FEATURES", |f| f.get_features())?;
        let version_1 = bit(VIRTIO_F_VERSION_1);
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        for (feature, value) in [("VERSION_1", version_1), ("PROTOCOL_FEATURES", protocol_bit)] {
            if offered & value == 0 {
                return Err(GuestError::MissingFeature { feature });
            }
        }
        let mut features = version_1 | protocol_bit;
        if config.event_idx {
            features |= offered & bit(VIRTIO_RING_F_EVENT_IDX);
        }
        if config.indirect {
            features |= offered & bit(VIRTIO_RING_F_INDIRECT_DESC);
        }
        let protocol_offered = self.call("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?;
        let mut ours = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ;
        if config.memory_slots {
            ours |= VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        }
        let protocol = protocol_offered & ours;
        self.call("SET_PROTOCOL_FEATURES", |f| f.set_protocol_features(protocol))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let queues = if protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.call("GET_QUEUE_NUM", |f| f.get_queue_num())?
        } else {
            wanted
        };
        if queues < wanted {
            return Err(GuestError::TooFewQueues {
                offered: queues,
                wanted,
            });
        }
        self.call("SET_FEATURES", |f| f.set_features(features))?;
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair().map_err(GuestError::os("socketpair"))?;
            self.call("SET_BACKEND_REQ_FD", |f| f.set_backend_request_fd(&theirs))?;
            self.backend_requests = Some(ours);
        }
        let negotiated = Negotiated {
            offered,
            features,
            protocol_offered: protocol_offered.bits(),
            protocol: protocol.bits(),
            queues,
        };
        self.share_memory(
            ram,
            negotiated.has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS),
        )?;
        Ok(negotiated)
    }

    fn share_memory(&mut self, ram: &GuestRam, slots: bool) -> Result<(), GuestError> {
        let regions = ram.regions()?;
        if slots {
            let max = self.call("GET_MAX_MEM_SLOTS", |f| f.get_max_mem_slots())?;
            if max < regions.len() as u64 {
                return Err(GuestError::MissingFeature {
                    feature: "two memory slots",
                });
            }
            for region in &regions {
                self.call("ADD_MEM_REG", |f| f.add_mem_region(region))?;
            }
            Ok(())
        } else {
            self.call("SET_MEM_TABLE", |f| f.set_mem_table(&regions))
        }
    }

    /// Describes one queue to the backend and enables it, from index 0.
    pub(super) fn start_queue(
        &mut self,
        index: usize,
        queue: &SplitQueue,
        ram: &GuestRam,
    ) -> Result<(), GuestError> {
        let layout = queue.layout();
        let addresses = VringConfigData {
            queue_max_size: layout.size(),
            queue_size: layout.size(),
            flags: 0,
            desc_table_addr: ram.frontend_address(layout.desc)?,
            used_ring_addr: ram.frontend_address(layout.used)?,
            avail_ring_addr: ram.frontend_address(layout.avail)?,
            log_addr: None,
        };
        self.call("SET_VRING_NUM", |f| f.set_vring_num(index, layout.size()))?;
        self.call("SET_VRING_ADDR", |f| f.set_vring_addr(index, &addresses))?;
        self.call("SET_VRING_BASE", |f| f.set_vring_base(index, 0))?;
        self.call("SET_VRING_CALL", |f| f.set_vring_call(index, queue.call_fd()))?;
        self.call("SET_VRING_KICK", |f| f.set_vring_kick(index, queue.kick_fd()))?;
        self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(index, true))
    }

    /// Waits until the backend has taken in everything sent so far. Without REPLY_ACK only a message that
    /// has an answer anyway shows that. QEMU does the same: a kick that overtakes SET_VRING_ENABLE is lost
    /// on backends made with vhost-user-backend before 0.22.
    pub(super) fn settle(&mut self) -> Result<(), GuestError> {
        self.call("GET_FEATURES", |f| f.get_features()).map(drop)
    }

    /// Disables one queue and reads where the backend stopped: its next available index.
    pub(super) fn stop_queue(&mut self, index: usize) -> Result<u32, GuestError> {
        self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(index, false))?;
        self.call("GET_VRING_BASE", |f| f.get_vring_base(index))
    }
}
