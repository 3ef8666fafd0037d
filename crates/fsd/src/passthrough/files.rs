//! The files and directories that the guest has open.
//!
//! A handle's descriptor and its flags never change while it lives, whatever flags a guest sends later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::{Errno, Result};

use super::budget::Permit;
use super::directory::Listing;
use super::slots::{Held, Slots};

/// An open file or directory.
pub(super) struct OpenFile {
    /// Whose it is: a handle is good for one inode only.
    pub(super) nodeid: u64,
    fd: OwnedFd,
    pub(super) writable: bool,
    /// Where reading a directory has got to; `None` for a file.
    pub(super) listing: Option<Mutex<Listing>>,
    _permit: Permit,
}

impl OpenFile {
    pub(super) fn file(nodeid: u64, fd: OwnedFd, writable: bool, permit: Permit) -> Self {
        Self {
            nodeid,
            fd,
            writable,
            listing: None,
            _permit: permit,
        }
    }

    pub(super) fn directory(nodeid: u64, fd: OwnedFd, permit: Permit) -> Self {
        Self {
            nodeid,
            fd,
            writable: false,
            listing: Some(Mutex::default()),
            _permit: permit,
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Open files by handle.
#[derive(Default)]
pub(super) struct Files(Slots<OpenFile>);

impl Files {
    /// Keeps an open file and returns its handle.
    pub(super) fn insert(&self, file: OpenFile) -> Result<u64> {
        self.0.insert(file).ok_or(Errno::NFILE)
    }

    /// The open file with this handle, which must be of this inode.
    pub(super) fn get(&self, handle: u64, nodeid: u64) -> Result<Held<OpenFile>> {
        self.0
            .get(handle)
            .filter(|file| file.nodeid == nodeid)
            .ok_or(Errno::BADF)
    }

    /// Closes it, once nobody uses it any more.
    pub(super) fn release(&self, handle: u64, nodeid: u64) -> Result<()> {
        self.get(handle, nodeid)?;
        if self.0.remove(handle) {
            Ok(())
        } else {
            Err(Errno::BADF)
        }
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}
