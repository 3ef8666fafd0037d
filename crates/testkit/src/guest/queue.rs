//! One split virtqueue, driver side: descriptors taken and freed, chains published, used entries reaped.
//!
//! Knows nothing of FUSE and never waits; [`super::transport`] does both. Publishing and reaping
//! follow virtio 1.2, 2.7.13 and 2.7.14 including the barriers.

use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::GuestError;
use super::mem::GuestRam;
use super::ring::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, RingLayout, USED_NO_NOTIFY, need_event};

/// A descriptor as it is in memory (little-endian on the wire; this crate runs on little-endian hosts).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `DESC_NEXT`, `DESC_WRITE`, `DESC_INDIRECT`.
    pub flags: u16,
    /// The next descriptor, if `DESC_NEXT`.
    pub next: u16,
}

impl RawDescriptor {
    fn bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// The driver's half of a split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    layout: RingLayout,
    /// Where the indirect tables are: one per descriptor, `table_entries` long.
    tables: u64,
    table_entries: u16,
    indirect: bool,
    event_idx: bool,
    free: Vec<u16>,
    /// By head: the descriptors of the chain in flight.
    chains: Vec<Option<Vec<u16>>>,
    next_avail: u16,
    kicked_avail: u16,
    next_used: u16,
    kick: EventFd,
    call: EventFd,
    kicks: u64,
}

impl SplitQueue {
    /// How many entries an indirect table has room for: a request of 256 pages with its headers,
    /// but never more than the queue (virtio 1.2, 2.7.5.3.1).
    pub fn table_entries(size: u16) -> u16 {
        size.min(512)
    }

    /// Bytes of guest memory a queue of `size` takes from `base` on: rings, then indirect tables.
    ///
    /// # Errors
    /// As [`RingLayout::new`].
    pub fn footprint(base: u64, size: u16) -> Result<u64, GuestError> {
        let tables = RingLayout::new(base, size)?.end.next_multiple_of(16);
        Ok(tables + DESC_BYTES * u64::from(Self::table_entries(size)) * u64::from(size) - base)
    }

    /// An empty queue at `base`.
    ///
    /// # Errors
    /// As [`RingLayout::new`]; [`GuestError::Os`] if no eventfd can be had.
    pub fn new(base: u64, size: u16, indirect: bool, event_idx: bool) -> Result<Self, GuestError> {
        let layout = RingLayout::new(base, size)?;
        Ok(Self {
            layout,
            tables: layout.end.next_multiple_of(16),
            table_entries: Self::table_entries(size),
            indirect,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![None; size.into()],
            next_avail: 0,
            kicked_avail: 0,
            next_used: 0,
            kick: EventFd::new(EFD_NONBLOCK).map_err(GuestError::os("eventfd"))?,
            call: EventFd::new(EFD_NONBLOCK).map_err(GuestError::os("eventfd"))?,
            kicks: 0,
        })
    }

    /// Forgets every request and zeroes the rings: what a guest's driver does when it starts.
    ///
    /// # Errors
    /// [`GuestError::Memory`] if the rings are outside the guest's memory.
    pub fn reset(&mut self, ram: &GuestRam) -> Result<(), GuestError> {
        let length = usize::try_from(self.layout.end - self.layout.desc).unwrap_or(usize::MAX);
        ram.write(self.layout.desc, &vec![0; length])?;
        self.free = (0..self.layout.size()).rev().collect();
        self.chains.fill(None);
        self.next_avail = 0;
        self.kicked_avail = 0;
        self.next_used = 0;
        // A call left over from before the reset is no call of the new driver.
        let _stale_calls = self.call.read();
        Ok(())
    }

    /// Where the rings are.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// Signalled by us when there is something new.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// Signalled by the daemon when something was used.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// How often the daemon was kicked.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Free descriptors.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The driver's next `avail.idx`.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The most buffers one chain may have.
    pub fn longest_chain(&self) -> usize {
        if self.indirect {
            self.table_entries.into()
        } else {
            self.layout.size().into()
        }
    }

    /// How many descriptors of the ring a chain of `segments` takes.
    pub fn cost(&self, segments: usize) -> usize {
        if self.indirect && segments > 1 {
            1
        } else {
            segments
        }
    }

    /// Writes a chain and puts it into the available ring; `None` if too few descriptors are free.
    /// The daemon does not see it before [`Self::publish`].
    ///
    /// # Errors
    /// [`GuestError::TooBig`] for a chain that can never fit, [`GuestError::Memory`].
    pub fn add(
        &mut self,
        ram: &GuestRam,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<Option<u16>, GuestError> {
        let head = self.place(ram, readable, writable)?;
        if let Some(head) = head {
            self.push_avail(ram, head)?;
        }
        Ok(head)
    }

    /// Writes a chain without making it available; `None` if too few descriptors are free. Its descriptors stay
    /// taken until [`Self::withdraw`].
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) fn place(
        &mut self,
        ram: &GuestRam,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<Option<u16>, GuestError> {
        let count = readable.len() + writable.len();
        if count > self.longest_chain() || count == 0 {
            return Err(GuestError::TooBig {
                what: "descriptors",
                need: count,
                limit: self.longest_chain(),
            });
        }
        if self.free.len() < self.cost(count) {
            return Ok(None);
        }
        let flags = readable
            .iter()
            .map(|_| 0)
            .chain(writable.iter().map(|_| DESC_WRITE));
        let buffers: Vec<(Segment, u16)> = readable.iter().chain(writable).copied().zip(flags).collect();
        let taken = self.free.split_off(self.free.len() - self.cost(count));
        let head = taken[0];
        if self.cost(count) == 1 && count > 1 {
            let table = self.tables + DESC_BYTES * u64::from(self.table_entries) * u64::from(head);
            let order: Vec<u16> = (0..self.table_entries).take(count).collect();
            write_chain(ram, table, &order, &buffers)?;
            let len = u32::try_from(count).unwrap_or(u32::MAX) * 16;
            let entry = RawDescriptor {
                addr: table,
                len,
                flags: DESC_INDIRECT,
                next: 0,
            };
            ram.write(self.layout.descriptor(head), &entry.bytes())?;
        } else {
            write_chain(ram, self.layout.desc, &taken, &buffers)?;
        }
        self.chains[usize::from(head)] = Some(taken);
        Ok(Some(head))
    }

    fn push_avail(&mut self, ram: &GuestRam, head: u16) -> Result<(), GuestError> {
        ram.write(self.layout.avail_entry(self.next_avail), &head.to_le_bytes())?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Shows the daemon everything added so far, and kicks it if it asked for that.
    ///
    /// # Errors
    /// [`GuestError::Memory`]; [`GuestError::Os`] if the eventfd cannot be written.
    pub fn publish(&mut self, ram: &GuestRam) -> Result<(), GuestError> {
        ram.store_u16(self.layout.avail_idx(), self.next_avail)?;
        // Without this the load of avail_event may be older than the store of avail.idx: a lost kick.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            need_event(
                ram.load_u16(self.layout.avail_event())?,
                self.next_avail,
                self.kicked_avail,
            )
        } else {
            ram.load_u16(self.layout.used_flags())? & USED_NO_NOTIFY == 0
        };
        self.kicked_avail = self.next_avail;
        if wanted { self.kick_now() } else { Ok(()) }
    }

    /// Kicks whether or not it is wanted.
    ///
    /// # Errors
    /// [`GuestError::Os`] if the eventfd cannot be written.
    pub fn kick_now(&mut self) -> Result<(), GuestError> {
        self.kicks += 1;
        self.kick.write(1).map_err(GuestError::os("kick"))
    }

    /// Takes the next used entry: head and written length.
    ///
    /// # Errors
    /// [`GuestError::Violation`] if the daemon used what was not in flight, or more than there was.
    pub fn reap(&mut self, ram: &GuestRam) -> Result<Option<(u16, u32)>, GuestError> {
        let used = ram.load_u16(self.layout.used_idx())?;
        let ready = used.wrapping_sub(self.next_used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.layout.size() {
            return Err(GuestError::Violation {
                what: "used.idx ran ahead of the ring",
                value: used.into(),
            });
        }
        let entry = self.layout.used_entry(self.next_used);
        let id = ram.load_u32(entry)?;
        let len = ram.load_u32(entry + 4)?;
        let head = u16::try_from(id).ok().filter(|h| *h < self.layout.size());
        let chain = head.and_then(|h| self.chains[usize::from(h)].take().map(|chain| (h, chain)));
        let Some((head, chain)) = chain else {
            return Err(GuestError::Violation {
                what: "used a chain that is not in flight",
                value: id.into(),
            });
        };
        self.free.extend(chain.into_iter().rev());
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((head, len)))
    }

    /// Asks for an interrupt at the next used entry; true if one is there already, so do not sleep.
    ///
    /// # Errors
    /// [`GuestError::Memory`] if the rings are outside the guest's memory.
    pub fn arm(&self, ram: &GuestRam) -> Result<bool, GuestError> {
        if self.event_idx {
            ram.store_u16(self.layout.used_event(), self.next_used)?;
        }
        fence(Ordering::SeqCst);
        Ok(ram.load_u16(self.layout.used_idx())? != self.next_used)
    }

    /// Takes the descriptors of a placed chain back.
    pub(crate) fn withdraw(&mut self, head: u16) {
        let chain = self.chains.get_mut(usize::from(head)).and_then(Option::take);
        self.free.extend(chain.into_iter().flatten().rev());
    }

    /// The next available and the next used index, for a driver that works on the rings itself.
    pub(crate) fn indexes(&self) -> (u16, u16) {
        (self.next_avail, self.next_used)
    }

    /// Goes on where such a driver has stopped, with nothing in flight.
    pub(crate) fn resume(&mut self, next_avail: u16, next_used: u16) {
        (self.next_avail, self.kicked_avail, self.next_used) = (next_avail, next_avail, next_used);
    }

    /// Whether EVENT_IDX is in use.
    pub(crate) fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Takes `count` descriptors out of circulation for a hand-made chain.
    pub(super) fn reserve(&mut self, count: usize) -> Option<Vec<u16>> {
        let at = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(at))
    }

    /// Makes a hand-made chain available under `head`. The descriptors come back if it is used.
    pub(super) fn add_raw(&mut self, ram: &GuestRam, head: u16, owned: Vec<u16>) -> Result<(), GuestError> {
        if let Some(slot) = self.chains.get_mut(usize::from(head)) {
            *slot = Some(owned);
        }
        self.push_avail(ram, head)
    }

    pub(super) fn write_descriptor(
        &self,
        ram: &GuestRam,
        n: u16,
        desc: RawDescriptor,
    ) -> Result<(), GuestError> {
        ram.write(self.layout.descriptor(n), &desc.bytes())
    }
}

fn write_chain(
    ram: &GuestRam,
    table: u64,
    order: &[u16],
    buffers: &[(Segment, u16)],
) -> Result<(), GuestError> {
    for (i, (segment, write)) in buffers.iter().enumerate() {
        let next = order.get(i + 1).copied();
        let desc = RawDescriptor {
            addr: segment.addr,
            len: segment.len,
            flags: write | if next.is_some() { DESC_NEXT } else { 0 },
            next: next.unwrap_or(0),
        };
        ram.write(table + DESC_BYTES * u64::from(order[i]), &desc.bytes())?;
    }
    Ok(())
}

/// Writes a table of descriptors somewhere in guest memory, for hand-made indirect chains.
pub(super) fn write_table(ram: &GuestRam, at: u64, table: &[RawDescriptor]) -> Result<(), GuestError> {
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.bytes()).collect();
    ram.write(at, &bytes)
}
