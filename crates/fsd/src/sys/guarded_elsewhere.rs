//! What `guarded.rs` is on processors for which there is no such copy: nothing, and files are read.

use std::ffi::c_void;

pub(super) const TOGETHER: usize = 4;
pub(super) const ALIGNED: usize = 16;
pub(super) const PAGE: usize = 4096;

/// Where memory was found not to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) address: usize,
}

/// The right to copy, which nobody gets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guard {}

impl Guard {
    pub(super) fn new() -> Option<Self> {
        None
    }

    /// # Safety
    /// There is no value to call it on.
    pub(super) unsafe fn copy(self, _: *mut u8, _: *const u8, _: usize) -> Result<(), Fault> {
        match self {}
    }

    /// # Safety
    /// As of `copy`.
    pub(super) unsafe fn copy_pages(self, _: [*mut u8; TOGETHER], _: *const u8) -> Result<(), Fault> {
        match self {}
    }

    /// # Safety
    /// As of `copy`.
    pub(super) unsafe fn look(self, _: *const u8) -> Result<(), Fault> {
        match self {}
    }
}

/// # Safety
/// Needs nothing.
pub(super) unsafe fn end_copy(_: *mut c_void, _: *mut c_void) -> bool {
    false
}
