//! The guest's memory: one memfd seen as two regions, and an allocator of equal chunks above the rings.
//!
//! Two regions, the second above 4 GiB and at an offset in the same file, are what a VMM with more
//! than 3 GiB sends: a backend that mixes up guest addresses, file offsets and frontend addresses
//! does not survive it. No unsafe: vm-memory does the mapping and every access.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    VolatileSlice,
};

use super::error::GuestError;

/// Where the second region starts, as on a PC: above the hole for devices.
pub const HIGH_BASE: u64 = 1 << 32;

/// Guest memory: a low region with the rings and half of the chunks, a high one with the rest.
#[derive(Debug)]
pub struct GuestRam {
    map: GuestMemoryMmap,
    chunk_size: usize,
    free: Vec<u64>,
    chunks: usize,
}

impl GuestRam {
    /// Maps `reserved` bytes for rings and tables, and at least `heap` bytes of chunks of `chunk_size`.
    ///
    /// # Errors
    /// [`GuestError::Os`] or [`GuestError::Map`] if the memory cannot be had.
    pub fn new(reserved: usize, heap: usize, chunk_size: usize) -> Result<Self, GuestError> {
        let reserved = reserved.next_multiple_of(chunk_size);
        let half = (heap / 2).next_multiple_of(chunk_size).max(chunk_size);
        let (low, high) = (reserved + half, half);
        let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC)
            .map_err(|e| GuestError::os("memfd_create")(e.into()))?;
        ftruncate(&fd, (low + high) as u64).map_err(|e| GuestError::os("ftruncate")(e.into()))?;
        let file = File::from(fd);
        let second = file.try_clone().map_err(GuestError::os("dup"))?;
        let map = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), low, Some(FileOffset::new(file, 0))),
            (
                GuestAddress(HIGH_BASE),
                high,
                Some(FileOffset::new(second, low as u64)),
            ),
        ])?;
        let mut free = Vec::new();
        // The last pushed is the first used: alternate, so that one request has data in both regions.
        for i in 0..half / chunk_size {
            free.push((reserved + i * chunk_size) as u64);
            free.push(HIGH_BASE + (i * chunk_size) as u64);
        }
        Ok(Self {
            map,
            chunk_size,
            chunks: free.len(),
            free,
        })
    }

    /// The regions as SET_MEM_TABLE and ADD_MEM_REG describe them.
    ///
    /// # Errors
    /// [`GuestError::Handshake`] if a region is not backed by a file, which cannot happen here.
    pub fn regions(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, GuestError> {
        self.map
            .iter()
            .map(|r| {
                VhostUserMemoryRegionInfo::from_guest_region(r).map_err(|source| GuestError::Handshake {
                    request: "memory region",
                    source,
                })
            })
            .collect()
    }

    /// The address in this process of a guest address: what SET_VRING_ADDR speaks.
    ///
    /// # Errors
    /// [`GuestError::Memory`] for an address outside the guest's memory.
    pub fn frontend_address(&self, address: u64) -> Result<u64, GuestError> {
        Ok(self.map.get_host_address(GuestAddress(address))? as u64)
    }

    /// Bytes in one chunk.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// How many chunks there are, used or not.
    pub fn chunk_count(&self) -> usize {
        self.chunks
    }

    /// How many chunks are free now.
    pub fn free_chunks(&self) -> usize {
        self.free.len()
    }

    /// Takes a chunk; its content is whatever was there.
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop()
    }

    /// Gives chunks back.
    pub fn give_back(&mut self, chunks: impl IntoIterator<Item = u64>) {
        self.free.extend(chunks);
    }

    /// Writes plain bytes.
    ///
    /// # Errors
    /// [`GuestError::Memory`] for an address outside the guest's memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        Ok(self.map.write_slice(bytes, GuestAddress(address))?)
    }

    /// Reads plain bytes.
    ///
    /// # Errors
    /// [`GuestError::Memory`] for an address outside the guest's memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), GuestError> {
        Ok(self.map.read_slice(bytes, GuestAddress(address))?)
    }

    /// A piece of memory, looked up once for many accesses.
    ///
    /// # Errors
    /// [`GuestError::Memory`] for an address outside the guest's memory.
    pub(crate) fn slice(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, GuestError> {
        Ok(self.map.get_slice(GuestAddress(address), len)?)
    }

    /// The same memory for another thread.
    pub(crate) fn share(&self) -> GuestMemoryMmap {
        self.map.clone()
    }

    pub(super) fn load_u16(&self, address: u64) -> Result<u16, GuestError> {
        let value: Result<u16, GuestMemoryError> = self.map.load(GuestAddress(address), Ordering::Acquire);
        Ok(u16::from_le(value?))
    }

    pub(super) fn store_u16(&self, address: u64, value: u16) -> Result<(), GuestError> {
        Ok(self
            .map
            .store(value.to_le(), GuestAddress(address), Ordering::Release)?)
    }

    pub(super) fn load_u32(&self, address: u64) -> Result<u32, GuestError> {
        let value: Result<u32, GuestMemoryError> = self.map.load(GuestAddress(address), Ordering::Relaxed);
        Ok(u32::from_le(value?))
    }

    /// A second handle on the memfd, for tests that map or compare the whole of it.
    ///
    /// # Errors
    /// [`GuestError::Os`] if no descriptor is left.
    pub fn file(&self) -> Result<File, GuestError> {
        let region = self.map.iter().next().and_then(|r| r.file_offset());
        match region {
            Some(offset) => offset.file().try_clone().map_err(GuestError::os("dup")),
            None => Err(GuestError::Os {
                what: "guest memory",
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }
}
