//! A request as it lies in guest memory: the buffers of its descriptor chain, collected in one walk.
//!
//! The walk takes what a guest may build, in loops, out of bounds, nested, and ends; the rules are those of the
//! virtio-queue crate (a chain that breaks them ends there). It checks no buffer's address: whoever uses the buffer
//! looks it up.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap, VolatileMemory, VolatileSlice};

use super::memory::{Guard, Near};
use super::ring::MAX_QUEUE_SIZE;
use super::split::{Layout, View};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// One buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) len: u32,
}

/// The buffers of a chain; kept by a worker and used again for every request.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

impl Buffers {
    /// Collects the buffers of the chain that begins at `head`.
    pub(super) fn collect(&mut self, view: &View<'_>, size: u16, memory: &Near<'_>, head: u16) {
        self.readable.clear();
        self.writable.clear();
        if let Some((addr, len)) = self.follow(view.table(), size, head) {
            // A table may be anywhere, in a table of its own size; it cannot lead to another one.
            let entries = len / 16;
            if let Ok(entries) = u16::try_from(entries)
                && len.is_multiple_of(16)
                && let Some(table) = memory.slice(addr, usize::from(entries) * DESCRIPTOR)
            {
                let _nested = self.follow(&table, entries, 0);
            }
        }
    }

    /// Follows a chain in one table. If it ends in an indirect descriptor, that one's address and length.
    fn follow(&mut self, table: &VolatileSlice<'_>, size: u16, first: u16) -> Option<(u64, u32)> {
        let mut next = first;
        // A chain has no more descriptors than its table: a longer one is a loop.
        for _ in 0..size {
            if next >= size {
                return None;
            }
            let raw = table.get_ref::<u128>(usize::from(next) * DESCRIPTOR).ok()?.load();
            let raw = u128::from_le(raw);
            let (addr, rest) = (low_u64(raw), low_u64(raw >> 64));
            let len = u32::try_from(rest & 0xffff_ffff).unwrap_or(0);
            let flags = u32::try_from(rest >> 32 & 0xffff).unwrap_or(0);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Some((addr, len));
            }
            let segment = Segment { addr, len };
            if flags & VRING_DESC_F_WRITE == 0 {
                self.readable.push(segment);
            } else {
                self.writable.push(segment);
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                return None;
            }
            next = u16::try_from(rest >> 48).unwrap_or(u16::MAX);
        }
        None
    }
}

fn low_u64(wide: u128) -> u64 {
    u64::try_from(wide & u128::from(u64::MAX)).unwrap_or(0)
}

/// A request that was taken off a ring.
#[derive(Debug)]
pub(crate) struct Chain<'r> {
    pub(super) buffers: &'r Buffers,
    pub(super) memory: &'r Guard,
    pub(super) near: Near<'r>,
    pub(super) layout: Layout,
    /// Where it was in the available ring.
    pub(super) index: u16,
    pub(super) head: u16,
}

impl Chain<'_> {
    /// What the guest has written, in order.
    pub(crate) fn readable(&self) -> &[Segment] {
        &self.buffers.readable
    }

    /// Where the answer goes, in order.
    pub(crate) fn writable(&self) -> &[Segment] {
        &self.buffers.writable
    }

    /// The guest's memory as it was when the request was taken.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        self.memory
    }

    /// A piece of it that lies in one mapping, as buffers nearly always do.
    pub(crate) fn piece(&self, addr: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.near.slice(addr, len)
    }

    /// The same request for code that follows descriptors itself. `None` if the guest has changed the ring under
    /// it, which is a breach of the rules.
    pub(crate) fn descriptors(&self) -> Option<DescriptorChain<Guard>> {
        // Such a chain can be had from a queue only: one that stands where this request was taken.
        let mut queue = Queue::new(MAX_QUEUE_SIZE).ok()?;
        queue.try_set_size(self.layout.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.layout.desc))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.layout.avail))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.layout.used))
            .ok()?;
        queue.set_next_avail(self.index);
        queue.set_ready(true);
        let chain = queue.iter(self.memory.clone()).ok()?.next()?;
        (chain.head_index() == self.head).then_some(chain)
    }
}

/// Chains for tests of what is behind the transport.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod testing {
    use vm_memory::Bytes;

    use super::*;

    /// A descriptor to be.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Buffer {
        pub(crate) addr: u64,
        pub(crate) len: u32,
        pub(crate) write: bool,
    }

    /// Lays out a ring of sixteen at the beginning of the memory, with one request in it, and takes that.
    pub(crate) fn with_chain<T>(memory: &Guard, buffers: &[Buffer], act: impl FnOnce(&Chain<'_>) -> T) -> T {
        let layout = Layout {
            size: 16,
            desc: 0,
            avail: 0x100,
            used: 0x200,
        };
        for (at, buffer) in (0_u16..).zip(buffers) {
            let mut flags = if buffer.write { VRING_DESC_F_WRITE } else { 0 };
            if usize::from(at) + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            let place = u64::from(at) * 16;
            memory.write_obj(buffer.addr, GuestAddress(place)).unwrap();
            memory.write_obj(buffer.len, GuestAddress(place + 8)).unwrap();
            let flags = u16::try_from(flags).unwrap();
            memory.write_obj(flags, GuestAddress(place + 12)).unwrap();
            memory.write_obj(at + 1, GuestAddress(place + 14)).unwrap();
        }
        memory.write_obj(1_u16, GuestAddress(layout.avail + 2)).unwrap();
        let mut collected = Buffers::default();
        let near = Near::new(memory);
        collected.collect(&layout.view(memory).unwrap(), layout.size, &near, 0);
        act(&Chain {
            buffers: &collected,
            memory,
            near,
            layout,
            index: 0,
            head: 0,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic};

    use super::*;

    const SIZE: u16 = 8;
    const LAYOUT: Layout = Layout {
        size: SIZE,
        desc: 0,
        avail: 0x100,
        used: 0x200,
    };
    /// Where indirect tables are.
    const TABLE: u64 = 0x300;

    proptest! {
        /// Whatever a guest writes, our walk sees what the virtio-queue crate sees (which also takes the beginning of
        /// a table that ends outside memory).
        #[test]
        fn any_chain_is_walked_as_virtio_queue_walks_it(
            head in 0..SIZE,
            descriptors in prop::collection::vec(
                (0_u64..0x2000, 0_u32..0x200, 0_u16..8, 0_u16..10), 32),
        ) {
            let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
            for (at, (addr, len, flags, next)) in descriptors.into_iter().enumerate() {
                let (addr, len) = if flags & 4 == 0 { (addr, len) } else { (TABLE, len % 0x180) };
                let at = if at < SIZE.into() { at as u64 * 16 } else { TABLE + (at as u64 - u64::from(SIZE)) * 16 };
                map.write_obj(addr, GuestAddress(at)).unwrap();
                map.write_obj(len, GuestAddress(at + 8)).unwrap();
                map.write_obj(flags, GuestAddress(at + 12)).unwrap();
                map.write_obj(next, GuestAddress(at + 14)).unwrap();
            }
            map.write_obj(1_u16, GuestAddress(LAYOUT.avail + 2)).unwrap();
            map.write_obj(head, GuestAddress(LAYOUT.avail + 4)).unwrap();
            let memory = GuestMemoryAtomic::new(map).memory();
            let mut buffers = Buffers::default();
            let near = Near::new(&memory);
            buffers.collect(&LAYOUT.view(&memory).unwrap(), SIZE, &near, head);
            let chain = Chain { buffers: &buffers, memory: &memory, near, layout: LAYOUT, index: 0, head };
            let theirs = chain.descriptors().unwrap();
            let of = |d: virtio_queue::desc::split::Descriptor| Segment { addr: d.addr().0, len: d.len() };
            prop_assert_eq!(chain.readable(), theirs.clone().readable().map(of).collect::<Vec<_>>());
            prop_assert_eq!(chain.writable(), theirs.writable().map(of).collect::<Vec<_>>());
        }
    }
}
