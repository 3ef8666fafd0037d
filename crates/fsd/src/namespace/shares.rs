//! The shares among the mounts, by the index that the VFS puts above inode numbers.
//!
//! For requests that do not go through the VFS because the FUSE library does not know them.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::passthrough::{Common, Share};

/// Where the VFS puts the index of a mount in the number of an inode.
const INDEX_SHIFT: u32 = 56;

/// Every share of a daemon.
#[derive(Debug)]
pub(crate) struct Shares {
    by_index: Box<[ArcSwapOption<Share>]>,
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
            common: Arc::default(),
        }
    }
}

impl Shares {
    pub(crate) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    pub(super) fn put(&self, index: u8, share: Arc<Share>) {
        self.by_index[usize::from(index)].store(Some(share));
    }

    pub(super) fn take(&self, index: u8) {
        self.by_index[usize::from(index)].store(None);
    }

    /// The share that an inode is in, if it is in one.
    pub(crate) fn node(&self, nodeid: u64) -> Option<ShareNode> {
        let index = nodeid >> INDEX_SHIFT;
        let share = self.by_index[usize::try_from(index).ok()?].load_full()?;
        Some(ShareNode {
            share,
            inode: nodeid & ((1 << INDEX_SHIFT) - 1),
            index,
        })
    }

    /// Every share that is mounted.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Share>> {
        self.by_index.iter().filter_map(ArcSwapOption::load_full)
    }
}
