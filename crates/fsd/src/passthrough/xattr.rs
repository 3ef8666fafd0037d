//! Extended attributes.
//!
//! A share may have them under other names on the host (`xattr_map.rs`). Access control lists are kept from the guest: it has not agreed to enforce them, and what it sets would be
//! enforced by the host on files that the guest's kernel believes to have another mode.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, removexattr, setxattr};
use rustix::io::{Errno, Result};

use super::Share;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`, in bytes.
const MOST: usize = 64 * 1024;

fn is_acl(name: &[u8]) -> bool {
    matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// The link in /proc that leads to an inode, be it a symbolic link; there are no such calls for `O_PATH`
/// descriptors.
fn path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

impl Share {
    /// The host's name for a guest's.
    fn host_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        if is_acl(name.to_bytes()) {
            return Err(Errno::OPNOTSUPP);
        }
        match &self.options.xattrmap {
            None => Ok(Cow::Borrowed(name)),
            Some(map) => map.to_host(name),
        }
    }

    /// The guest's name for one that the host lists, if the guest sees it.
    fn guest_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let name = match &self.options.xattrmap {
            None => Some(name),
            Some(map) => map.to_guest(name),
        };
        // An empty one is what a prefix alone would be.
        name.filter(|name| !name.is_empty() && !is_acl(name))
    }

    /// The value of an attribute, or its length if `room` is 0.
    pub(crate) fn getxattr(&self, nodeid: u64, name: &CStr, room: u32) -> Result<GetxattrReply> {
        // As if it were not there.
        let name = self.host_name(name).map_err(|errno| match errno {
            Errno::PERM => Errno::NODATA,
            other => other,
        })?;
        let inode = self.inodes.get(nodeid)?;
        let fd = inode.path_fd()?;
        if room == 0 {
            let len = getxattr_query(path(&fd), &*name)?;
            return Ok(GetxattrReply::Count(
                u32::try_from(len).map_err(|_| Errno::RANGE)?,
            ));
        }
        let mut value = vec![0_u8; (room as usize).min(MOST)];
        let len = getxattr(path(&fd), &*name, &mut value[..])?;
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    /// The names of the attributes, each with a NUL, or their length if `room` is 0.
    pub(crate) fn listxattr(&self, nodeid: u64, room: u32) -> Result<ListxattrReply> {
        let inode = self.inodes.get(nodeid)?;
        let fd = inode.path_fd()?;
        if room == 0 {
            let len = listxattr_query(path(&fd))?;
            return Ok(ListxattrReply::Count(
                u32::try_from(len).map_err(|_| Errno::RANGE)?,
            ));
        }
        let mut names = vec![0_u8; (room as usize).min(MOST)];
        let len = listxattr(path(&fd), &mut names[..])?;
        names.truncate(len);
        let mut shown = Vec::with_capacity(names.len());
        let host = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        for name in host.filter_map(|name| self.guest_name(name)) {
            shown.extend_from_slice(name);
            shown.push(0);
        }
        Ok(ListxattrReply::Names(shown))
    }

    /// Sets an attribute, as `setxattr(2)`.
    pub(crate) fn setxattr(&self, nodeid: u64, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        let name = self.host_name(name)?;
        let inode = self.inodes.get(nodeid)?;
        let fd = inode.path_fd()?;
        setxattr(path(&fd), &*name, value, XattrFlags::from_bits_retain(flags))
    }

    /// Removes an attribute.
    pub(crate) fn removexattr(&self, nodeid: u64, name: &CStr) -> Result<()> {
        self.writable()?;
        let name = self.host_name(name)?;
        let inode = self.inodes.get(nodeid)?;
        let fd = inode.path_fd()?;
        removexattr(path(&fd), &*name)
    }
}
