//! Everything a frontend and this backend have agreed on, in one value.
//!
//! Workers do not read it; they see its effects in the rings. Whoever wants to write a session down or rebuild it
//! elsewhere finds all of it here.

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::memory::MemoryTable;
use crate::fuse::Negotiated;

/// What was set for one virtqueue. Addresses are the guest's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RingRecord {
    pub(crate) size: u32,
    pub(crate) base: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
}

/// The negotiated facts of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) owned: bool,
    pub(crate) features: u64,
    pub(crate) protocol_features: VhostUserProtocolFeatures,
    pub(crate) memory: MemoryTable,
    pub(crate) rings: Vec<RingRecord>,
    /// Result of FUSE_INIT; a guest that reboots on the same connection replaces it.
    #[expect(
        dead_code,
        reason = "part of the record; read through Debug and by whoever rebuilds a session"
    )]
    pub(crate) fuse: Negotiated,
}

impl Session {
    pub(crate) fn new(rings: usize, fuse: Negotiated) -> Self {
        Self {
            owned: false,
            features: 0,
            protocol_features: VhostUserProtocolFeatures::empty(),
            memory: MemoryTable::default(),
            rings: vec![RingRecord::default(); rings],
            fuse,
        }
    }
}
