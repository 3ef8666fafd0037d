//! The guest's memory as the frontend describes it.
//!
//! The table is replaced or amended by the session thread and read by the workers. A request keeps the table it
//! was popped under alive until it is done, so memory is never unmapped under a request.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserSingleMemoryRegion};
use vhost::vhost_user::{Error, Result};
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryLoadGuard,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileSlice,
};

/// Memory slots offered with `CONFIGURE_MEM_SLOTS`; QEMU's and rust-vmm's customary maximum.
pub(crate) const MAX_MEM_SLOTS: u64 = 509;

/// A snapshot of the table, held by each request.
pub(crate) type Guard = GuestMemoryLoadGuard<GuestMemoryMmap>;

/// Guest memory with the region at hand that is probably used next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near<'m> {
    memory: &'m GuestMemoryMmap,
    region: Option<&'m GuestRegionMmap>,
}

impl<'m> Near<'m> {
    pub(super) fn new(memory: &'m GuestMemoryMmap) -> Self {
        Self { memory, region: None }
    }

    /// What is around this address will be used.
    pub(super) fn expect(&mut self, addr: u64) {
        let addr = GuestAddress(addr);
        if self.region.and_then(|r| r.to_region_addr(addr)).is_none() {
            self.region = self.memory.find_region(addr);
        }
    }

    /// These bytes, if they are in one region.
    pub(super) fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'m>> {
        let addr = GuestAddress(addr);
        match self.region.and_then(|r| Some((r, r.to_region_addr(addr)?))) {
            Some((region, at)) => region.get_slice(at, len).ok(),
            None => self.memory.get_slice(addr, len).ok(),
        }
    }
}

/// Where one region of the guest lies in the frontend's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    guest: u64,
    user: u64,
    size: u64,
}

/// The mapped memory, shared by the session thread and the rings.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    map: GuestMemoryAtomic<GuestMemoryMmap>,
    generation: Arc<AtomicU64>,
}

impl Memory {
    /// Counts the changes of the table.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The table as it is now.
    pub(super) fn snapshot(&self) -> Guard {
        self.map.memory()
    }
}

/// The memory table of one session.
#[derive(Debug)]
pub(crate) struct MemoryTable {
    extents: Vec<Extent>,
    memory: Memory,
}

impl Default for MemoryTable {
    fn default() -> Self {
        Self {
            extents: Vec::new(),
            memory: Memory {
                map: GuestMemoryAtomic::new(GuestMemoryMmap::new()),
                generation: Arc::default(),
            },
        }
    }
}

fn refused(what: &'static str) -> Error {
    Error::ReqHandlerError(std::io::Error::new(std::io::ErrorKind::InvalidInput, what))
}

fn map_region(guest: u64, size: u64, offset: u64, file: File) -> Result<Arc<GuestRegionMmap>> {
    let len = usize::try_from(size).map_err(|_| refused("memory region is larger than the address space"))?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, offset), len)
        .map_err(|e| Error::ReqHandlerError(std::io::Error::other(e)))?;
    GuestRegionMmap::new(mapping, GuestAddress(guest))
        .map(Arc::new)
        .ok_or_else(|| refused("memory region ends beyond the guest's address space"))
}

impl MemoryTable {
    /// SET_MEM_TABLE: replaces everything.
    pub(crate) fn replace(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        if regions.len() != files.len() {
            return Err(refused("number of memory regions and of file descriptors differ"));
        }
        let mut mapped = Vec::with_capacity(regions.len());
        let mut extents = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            mapped.push(map_region(
                region.guest_phys_addr,
                region.memory_size,
                region.mmap_offset,
                file,
            )?);
            extents.push(Extent {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                size: region.memory_size,
            });
        }
        mapped.sort_by_key(|r| GuestMemoryRegion::start_addr(r.as_ref()));
        let map = GuestMemoryMmap::from_arc_regions(mapped)
            .map_err(|e| Error::ReqHandlerError(std::io::Error::other(e)))?;
        self.publish(map);
        self.extents = extents;
        Ok(())
    }

    /// ADD_MEM_REG: adds one region.
    pub(crate) fn add(&mut self, region: &VhostUserSingleMemoryRegion, file: File) -> Result<()> {
        let mapped = map_region(
            region.guest_phys_addr,
            region.memory_size,
            region.mmap_offset,
            file,
        )?;
        let map = self
            .memory
            .snapshot()
            .insert_region(mapped)
            .map_err(|e| Error::ReqHandlerError(std::io::Error::other(e)))?;
        self.publish(map);
        self.extents.push(Extent {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            size: region.memory_size,
        });
        Ok(())
    }

    /// REM_MEM_REG: removes one region, named by all its addresses.
    pub(crate) fn remove(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let wanted = Extent {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            size: region.memory_size,
        };
        let Some(at) = self.extents.iter().position(|e| *e == wanted) else {
            return Err(refused("no such memory region"));
        };
        let (map, _removed) = self
            .memory
            .snapshot()
            .remove_region(GuestAddress(region.guest_phys_addr), region.memory_size)
            .map_err(|e| Error::ReqHandlerError(std::io::Error::other(e)))?;
        self.publish(map);
        self.extents.swap_remove(at);
        Ok(())
    }

    /// Where a frontend's address lies in the guest (rings are given as frontend addresses).
    pub(crate) fn to_guest(&self, user: u64) -> Option<GuestAddress> {
        self.extents.iter().find_map(|e| {
            let offset = user.checked_sub(e.user)?;
            (offset < e.size)
                .then(|| e.guest.checked_add(offset))
                .flatten()
                .map(GuestAddress)
        })
    }

    /// The shared handle from which workers take their snapshots.
    pub(crate) fn handle(&self) -> Memory {
        self.memory.clone()
    }

    fn publish(&self, map: GuestMemoryMmap) {
        match self.memory.map.lock() {
            Ok(exclusive) => exclusive.replace(map),
            // Another thread panicked while it held the lock; the table itself is an atomic pointer and is whole.
            Err(poisoned) => poisoned.into_inner().replace(map),
        }
        self.memory.generation.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Wherever the one before was, and whatever a guest names.
        #[test]
        fn what_is_near_is_what_is_there(
            pieces in prop::collection::vec((0_u64..0x6000, 0_usize..0x1800), 1..20),
            wild in any::<(u64, usize)>(),
        ) {
            let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000), (GuestAddress(0x4000), 0x1000)];
            let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
            let mut near = Near::new(&memory);
            let place = |slice: VolatileSlice<'_>| (slice.ptr_guard().as_ptr(), slice.len());
            for (addr, len) in pieces.into_iter().chain([wild]) {
                prop_assert_eq!(
                    near.slice(addr, len).map(place),
                    memory.get_slice(GuestAddress(addr), len).ok().map(place)
                );
                near.expect(addr);
            }
        }
    }
}
