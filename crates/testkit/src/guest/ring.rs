//! The arithmetic and layout of a split virtqueue (virtio 1.2, 2.7). Pure: owns no memory.
//!
//! Indexes are 16-bit and wrap; they are never compared, only subtracted.

use super::error::GuestError;

/// The descriptor continues at `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes this descriptor (else it reads it).
pub const DESC_WRITE: u16 = 2;
/// The descriptor's buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// `used.flags`: the device wants no kicks (only without EVENT_IDX).
pub const USED_NO_NOTIFY: u16 = 1;

/// Bytes of one descriptor.
pub const DESC_BYTES: u64 = 16;

/// The largest split queue virtio allows.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Whether the other side asked to be told about the step from `old` to `new`
/// (virtio 1.2, 2.7.7.1 and 2.7.10: `vring_need_event`).
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where the parts of one queue are, in guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    size: u16,
    /// The descriptor table, 16-byte aligned.
    pub desc: u64,
    /// The available ring, 2-byte aligned.
    pub avail: u64,
    /// The used ring, 4-byte aligned.
    pub used: u64,
    /// The first byte after the queue.
    pub end: u64,
}

impl RingLayout {
    /// Lays a queue of `size` out from `base` on (rounded up to 16).
    ///
    /// # Errors
    /// [`GuestError::TooBig`] unless `size` is a power of two up to 32768.
    pub fn new(base: u64, size: u16) -> Result<Self, GuestError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(GuestError::TooBig {
                what: "descriptors (a power of two)",
                need: size.into(),
                limit: MAX_QUEUE_SIZE.into(),
            });
        }
        let n = u64::from(size);
        let desc = base.next_multiple_of(16);
        let avail = desc + DESC_BYTES * n;
        // flags, idx, ring, used_event.
        let used = (avail + 4 + 2 * n + 2).next_multiple_of(4);
        // flags, idx, ring of {id, len}, avail_event.
        let end = used + 4 + 8 * n + 2;
        Ok(Self {
            size,
            desc,
            avail,
            used,
            end,
        })
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The slot an index falls on.
    pub fn slot(&self, index: u16) -> u16 {
        index & (self.size - 1)
    }

    /// Descriptor `n`.
    pub fn descriptor(&self, n: u16) -> u64 {
        self.desc + DESC_BYTES * u64::from(n)
    }

    /// `avail.idx`.
    pub fn avail_idx(&self) -> u64 {
        self.avail + 2
    }

    /// The entry of the available ring for `index`.
    pub fn avail_entry(&self, index: u16) -> u64 {
        self.avail + 4 + 2 * u64::from(self.slot(index))
    }

    /// `avail.used_event`: the used index the driver wants an interrupt for.
    pub fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    /// `used.flags`.
    pub fn used_flags(&self) -> u64 {
        self.used
    }

    /// `used.idx`.
    pub fn used_idx(&self) -> u64 {
        self.used + 2
    }

    /// The `{id, len}` of the used ring for `index`.
    pub fn used_entry(&self, index: u16) -> u64 {
        self.used + 4 + 8 * u64::from(self.slot(index))
    }

    /// `used.avail_event`: the available index the device wants a kick for.
    pub fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
