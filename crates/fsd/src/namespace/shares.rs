//! The mounts, and the shares among them, by the index that the VFS puts above inode numbers.
//!
//! For requests that do not go through the VFS because the FUSE library does not know them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use arc_swap::ArcSwapOption;
use fuse_backend_rs::abi::fuse_abi::ROOT_ID;

use crate::passthrough::{Common, Share};

/// Where the VFS puts the index of a mount in the number of an inode.
const INDEX_SHIFT: u32 = 56;

/// Every share of a daemon, and where there are mounts.
#[derive(Debug)]
pub(crate) struct Shares {
    by_index: Box<[ArcSwapOption<Share>]>,
    mounted: Box<[AtomicBool]>,
    /// The index of what is mounted at `/`, 0 for nothing.
    at_root: AtomicU8,
    common: Arc<Common>,
}

/// An inode of a share, as the guest names it.
#[derive(Debug)]
pub(crate) struct ShareNode {
    pub(crate) share: Arc<Share>,
    /// Its number within the share.
    pub(crate) inode: u64,
    index: u64,
}

impl ShareNode {
    /// The number to the guest of another inode of this share.
    pub(crate) fn nodeid(&self, inode: u64) -> u64 {
        self.index << INDEX_SHIFT | inode
    }

    pub(crate) fn same_share(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.share, &other.share)
    }
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            by_index: (0..=u8::MAX).map(|_| ArcSwapOption::empty()).collect(),
            mounted: (0..=u8::MAX).map(|index| AtomicBool::new(index == 0)).collect(),
            at_root: AtomicU8::new(0),
            common: Arc::default(),
        }
    }
}

impl Shares {
    pub(crate) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Something was mounted, with its share if it is one.
    pub(crate) fn put(&self, index: u8, share: Option<Arc<Share>>, at_root: bool) {
        self.by_index[usize::from(index)].store(share);
        self.mounted[usize::from(index)].store(true, Ordering::Release);
        if at_root {
            self.at_root.store(index, Ordering::Release);
        }
    }

    /// It is unmounted.
    pub(crate) fn take(&self, index: u8) {
        let _other = self
            .at_root
            .compare_exchange(index, 0, Ordering::AcqRel, Ordering::Acquire);
        self.mounted[usize::from(index)].store(false, Ordering::Release);
        self.by_index[usize::from(index)].store(None);
    }

    /// Whether the mount that an inode is in is still there; the directories above mounts always are.
    pub(crate) fn is_mounted(&self, nodeid: u64) -> bool {
        let index = usize::try_from(nodeid >> INDEX_SHIFT).ok();
        let mounted = index.and_then(|index| self.mounted.get(index));
        mounted.is_some_and(|mounted| mounted.load(Ordering::Acquire))
    }

    /// The share that an inode is in, if it is in one.
    pub(crate) fn node(&self, nodeid: u64) -> Option<ShareNode> {
        // What is mounted at `/` has two names there: FUSE's and its own.
        let at_root = self.at_root.load(Ordering::Acquire);
        let is_root = nodeid == ROOT_ID && at_root != 0;
        let index = if is_root {
            u64::from(at_root)
        } else {
            nodeid >> INDEX_SHIFT
        };
        let share = self.by_index[usize::try_from(index).ok()?].load_full()?;
        let inode = if is_root {
            share.root()
        } else {
            nodeid & ((1 << INDEX_SHIFT) - 1)
        };
        Some(ShareNode { share, inode, index })
    }

    /// Every share that is mounted.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Share>> {
        self.by_index.iter().filter_map(ArcSwapOption::load_full)
    }
}
