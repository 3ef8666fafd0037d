//! File handles: names of files that cost no descriptor and outlive a rename.
//!
//! Only handles made here are ever opened; none comes from a guest.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

/// `MAX_HANDLE_SZ`, in bytes.
const MAX: usize = 128;
/// The same, as `struct file_handle` says it.
const ROOM: libc::c_uint = 128;

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct Raw {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX],
}

/// A file of one mount, by what its file system calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHandle {
    kind: libc::c_int,
    bytes: Box<[u8]>,
}

impl FileHandle {
    /// The handle of `name` in the directory `dir`; symbolic links are not followed. An empty name is `dir` itself.
    ///
    /// # Errors
    /// `OPNOTSUPP` or `OVERFLOW` where the file system has none that can be used.
    pub(crate) fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self> {
        let mut raw = Raw {
            bytes: ROOM,
            kind: 0,
            handle: [0; MAX],
        };
        let mut mount = 0;
        let handle: *mut Raw = &raw mut raw;
        // SAFETY: `name` ends in a NUL, `mount` is a live int, and `handle` points to a `struct file_handle` whose
        // `handle_bytes` says how much room follows it.
        let done = unsafe {
            libc::name_to_handle_at(
                dir.as_raw_fd(),
                name.as_ptr(),
                handle.cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done != 0 {
            return Err(last_error());
        }
        let len = usize::try_from(raw.bytes).unwrap_or(MAX).min(MAX);
        Ok(Self {
            kind: raw.kind,
            bytes: raw.handle[..len].into(),
        })
    }

    /// Opens the file; `mount` is any open file of the file system it is on. Needs CAP_DAC_READ_SEARCH.
    ///
    /// # Errors
    /// `STALE` when the file is gone.
    pub(crate) fn open(&self, mount: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let mut raw = Raw {
            bytes: libc::c_uint::try_from(self.bytes.len()).unwrap_or(0),
            kind: self.kind,
            handle: [0; MAX],
        };
        raw.handle[..self.bytes.len()].copy_from_slice(&self.bytes);
        let handle: *mut Raw = &raw mut raw;
        // SAFETY: `handle` points to a `struct file_handle` followed by as many bytes as it says.
        let fd =
            unsafe { libc::open_by_handle_at(mount.as_raw_fd(), handle.cast(), flags.bits().cast_signed()) };
        if fd < 0 {
            return Err(last_error());
        }
        // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
