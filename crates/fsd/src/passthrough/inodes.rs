//! The inodes that the guest knows, by their number.
//!
//! A number is the host's: `mount << 48 | ino`, where `mount` counts the file systems of a share as they are met. So
//! it is the same each time a guest looks a file up, for as long as the share is mounted, and the VFS may show it
//! as `st_ino`. What has no such number (an inode number beyond 48 bits, or one that was given to a new file while
//! the guest still knows the old one) gets one from a range of its own.
//!
//! The table is split, so that threads that look up different inodes seldom meet. No lock is held over I/O.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use rustix::fs::FileType;
use rustix::io::{Errno, Result};

use super::inode::{HostId, Inode, Location};
use crate::sys::file_handle::FileHandle;

const SHARDS: usize = 64;
const INO_BITS: u32 = 48;
/// `mount` of the numbers that are not the host's.
const OURS: u64 = 0xff;
/// File systems below a share that can have numbers of the host: 1 to 0xfe.
const MOUNTS: usize = 0xfe;

type Map = HashMap<u64, Arc<Inode>, BuildHasherDefault<NodeHasher>>;

/// On its own cache lines, with the neighbour that the processor fetches along.
#[repr(align(128))]
#[derive(Default)]
struct Shard(RwLock<Map>);

/// Spreads numbers that mostly count upwards; nobody but the host's file system chooses them.
#[derive(Default)]
struct NodeHasher(u64);

impl Hasher for NodeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n ^ (n >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Every inode a guest knows of one share.
pub(super) struct Inodes {
    root: Arc<Inode>,
    shards: [Shard; SHARDS],
    /// File systems but the root's, in the order in which they were met.
    mounts: RwLock<Vec<HostId>>,
    /// The numbers of ours. Locked before a shard's map.
    aliases: Mutex<HashMap<HostId, u64>>,
    /// How many aliases there are, so that the lock is taken only if there is one.
    aliased: AtomicUsize,
    next_alias: AtomicU64,
}

impl Inodes {
    /// Only the root, which is never forgotten.
    pub(super) fn new(id: HostId, location: Location) -> Self {
        let nodeid = host_number(0, &id).unwrap_or(OURS << INO_BITS);
        Self {
            root: Arc::new(Inode::new(nodeid, id, FileType::Directory, location)),
            shards: std::array::from_fn(|_| Shard::default()),
            mounts: RwLock::default(),
            aliases: Mutex::default(),
            aliased: AtomicUsize::new(0),
            next_alias: AtomicU64::new(1),
        }
    }

    pub(super) fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The inode with this number.
    ///
    /// # Errors
    /// `BADF` when the guest was not told of it, or has forgotten it.
    pub(super) fn get(&self, nodeid: u64) -> Result<Arc<Inode>> {
        if nodeid == self.root.nodeid {
            return Ok(Arc::clone(&self.root));
        }
        let map = self
            .shard(nodeid)
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        map.get(&nodeid).cloned().ok_or(Errno::BADF)
    }

    /// The number a directory entry shows for an inode that nobody looked up.
    pub(super) fn shown(&self, id: &HostId) -> u64 {
        self.number(id).unwrap_or(OURS << INO_BITS)
    }

    /// One more lookup of an inode that is known already. `handle` makes the handle of the file that was found, to
    /// tell it from an older one with the same number.
    pub(super) fn claim(
        &self,
        id: &HostId,
        handle: impl FnOnce() -> Result<FileHandle>,
    ) -> Option<Arc<Inode>> {
        if *id == self.root.id {
            return Some(Arc::clone(&self.root));
        }
        let inode = self.get(self.number(id)?).ok()?;
        (inode.id == *id && inode.is(handle) && inode.claim()).then_some(inode)
    }

    /// One lookup of an inode that was not known. When somebody else was faster it is theirs.
    pub(super) fn insert(&self, id: HostId, kind: FileType, location: Location) -> Arc<Inode> {
        let nodeid = self.number(&id).filter(|nodeid| !is_alias(*nodeid));
        let Some(nodeid) = nodeid else {
            return self.insert_alias(id, kind, location);
        };
        let mut map = self.map(nodeid);
        match map.get(&nodeid) {
            // Just forgotten by the last who knew it, and about to be removed.
            Some(there) if !there.is_known() => {}
            Some(there) if there.is(|| location.handle()) && there.claim() => return Arc::clone(there),
            None => {}
            Some(_) => {
                drop(map);
                return self.insert_alias(id, kind, location);
            }
        }
        let inode = Arc::new(Inode::new(nodeid, id, kind, location));
        map.insert(nodeid, Arc::clone(&inode));
        inode
    }

    /// The same with a number of ours, which is never given to another. An inode has one at a time, however many look
    /// it up: it is found or made under the lock.
    fn insert_alias(&self, id: HostId, kind: FileType, location: Location) -> Arc<Inode> {
        let mut aliases = self.aliases();
        if let Some(nodeid) = aliases.get(&id)
            && let Some(there) = self.map(*nodeid).get(nodeid)
            && there.is(|| location.handle())
            && there.claim()
        {
            return Arc::clone(there);
        }
        let nodeid = OURS << INO_BITS | self.next_alias.fetch_add(1, Ordering::Relaxed);
        let inode = Arc::new(Inode::new(nodeid, id, kind, location));
        self.map(nodeid).insert(nodeid, Arc::clone(&inode));
        aliases.insert(id, nodeid);
        self.aliased.store(aliases.len(), Ordering::Release);
        inode
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, nodeid: u64, count: u64) {
        if nodeid == self.root.nodeid {
            return;
        }
        let Ok(inode) = self.get(nodeid) else { return };
        if !inode.forget(count) {
            return;
        }
        let mut map = self.map(nodeid);
        // Somebody may have put a newer one in its place.
        if map.get(&nodeid).is_some_and(|there| Arc::ptr_eq(there, &inode)) {
            map.remove(&nodeid);
        }
        drop(map);
        if is_alias(nodeid) {
            let mut aliases = self.aliases();
            if aliases.get(&inode.id) == Some(&nodeid) {
                aliases.remove(&inode.id);
                self.aliased.store(aliases.len(), Ordering::Release);
            }
        }
    }

    /// Forgets all but the root.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let gone = std::mem::take(&mut *shard.0.write().unwrap_or_else(PoisonError::into_inner));
            // Outside of the lock: this closes descriptors.
            drop(gone);
        }
        self.aliases().clear();
        self.aliased.store(0, Ordering::Release);
    }

    /// The map that has a number, to change it.
    fn map(&self, nodeid: u64) -> RwLockWriteGuard<'_, Map> {
        let shard = self.shard(nodeid);
        shard.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, nodeid: u64) -> &Shard {
        let mut hasher = NodeHasher::default();
        hasher.write_u64(nodeid);
        // Bits that the map inside does not use to find its place.
        &self.shards[usize::try_from(hasher.finish() >> 40).unwrap_or(0) % SHARDS]
    }

    /// The number of an inode, if it has one already or the host has one for it.
    fn number(&self, id: &HostId) -> Option<u64> {
        if self.aliased.load(Ordering::Acquire) > 0
            && let Some(nodeid) = self.aliases().get(id)
        {
            return Some(*nodeid);
        }
        host_number(self.mount(id)?, id)
    }

    fn mount(&self, id: &HostId) -> Option<u64> {
        if id.same_mount(&self.root.id) {
            return Some(0);
        }
        let position = |mounts: &[HostId]| mounts.iter().position(|mount| mount.same_mount(id));
        let known = position(&self.mounts.read().unwrap_or_else(PoisonError::into_inner));
        let index = known.or_else(|| {
            let mut mounts = self.mounts.write().unwrap_or_else(PoisonError::into_inner);
            position(&mounts).or_else(|| {
                let next = mounts.len();
                (next < MOUNTS).then(|| {
                    mounts.push(*id);
                    next
                })
            })
        })?;
        u64::try_from(index + 1).ok()
    }

    fn aliases(&self) -> MutexGuard<'_, HashMap<HostId, u64>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_alias(nodeid: u64) -> bool {
    nodeid >> INO_BITS == OURS
}

fn host_number(mount: u64, id: &HostId) -> Option<u64> {
    (id.ino != 0 && id.ino >> INO_BITS == 0).then_some(mount << INO_BITS | id.ino)
}
