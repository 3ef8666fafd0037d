//! Names that are removed, changed, or read as what they lead to.

use std::ffi::CStr;

use rustix::fs::{AtFlags, RenameFlags, readlinkat, renameat_with, unlinkat};
use rustix::io::{Errno, Result};

use super::Share;

/// The last component of a path that is to go. `.` and `..` are refused by the kernel, each in its way.
fn last(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" => Err(Errno::NOENT),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

impl Share {
    /// Removes a name that is not a directory's.
    pub(crate) fn unlink(&self, parent: u64, name: &CStr) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, parent: u64, name: &CStr) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> Result<()> {
        self.writable()?;
        let parent = self.inodes.get(parent)?;
        unlinkat(parent.path_fd()?, last(name)?, flags)
    }

    /// Moves a name, as `renameat2(2)`.
    pub(crate) fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> Result<()> {
        self.writable()?;
        let (old, new) = (self.inodes.get(from.0)?, self.inodes.get(to.0)?);
        let flags = RenameFlags::from_bits_retain(flags);
        renameat_with(old.path_fd()?, last(from.1)?, new.path_fd()?, last(to.1)?, flags)
    }

    /// Where a symbolic link leads.
    pub(crate) fn readlink(&self, nodeid: u64) -> Result<Vec<u8>> {
        let inode = self.inodes.get(nodeid)?;
        Ok(readlinkat(inode.path_fd()?, c"", Vec::new())?.into_bytes())
    }
}
