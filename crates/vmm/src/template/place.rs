//! The directory of one template, held by its descriptor: what is looked at, read and removed is one and the same,
//! whatever takes its place meanwhile.
//!
//! It is removed file by file, by the names that templates have: never what somebody else has put there.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, rmdir, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::Description;

pub(super) const ABOUT: &str = "about";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";

/// No description is longer.
const MAX_ABOUT_LEN: u64 = 1 << 20;

/// A directory that is a template, was to become one, or only has a name like one.
#[derive(Debug)]
pub(super) struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

/// Whether a directory is this user's or root's, and only its owner writes to it.
pub(super) fn check_owner(owner: u32, mode: u32) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if owner != 0 && owner != geteuid().as_raw() {
        return refused(format!("it belongs to another user ({owner})"));
    }
    if mode & 0o022 != 0 {
        return refused(format!("others may write to it (mode {:03o})", mode & 0o777));
    }
    Ok(())
}

impl Place {
    /// Opens it, if it is there. A link is none, and one that others may write to is refused.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let dir = fstat(&fd)?;
        check_owner(dir.st_uid, dir.st_mode)?;
        Ok(Some(Self {
            fd,
            path: path.to_owned(),
        }))
    }

    /// Opens a file in it, if there is one. What is no file is an error.
    pub(super) fn file(&self, name: &str) -> io::Result<Option<File>> {
        // A pipe must not make us wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no file"));
        }
        Ok(Some(fd.into()))
    }

    /// What it says it is a template of.
    pub(super) fn about(&self) -> io::Result<Option<(File, String)>> {
        let Some(about) = self.file(ABOUT)? else {
            return Ok(None);
        };
        let mut text = String::new();
        (&about).take(MAX_ABOUT_LEN).read_to_string(&mut text)?;
        Ok(Some((about, text)))
    }

    /// Whether nothing is in it but a template, which says so itself.
    pub(super) fn is_a_template(&self) -> bool {
        self.has_nothing_but(&[ABOUT, STATE, MEMORY])
            && self
                .about()
                .is_ok_and(|about| about.is_some_and(|(_, text)| Description::is_one(&text)))
    }

    /// Whether nothing is in it but what a template becomes of. What says so is written first, and may not have been.
    pub(super) fn is_to_be_a_template(&self) -> bool {
        let only_begun = || {
            let about = self.about();
            self.has_nothing_but(&[ABOUT])
                && about.is_ok_and(|about| about.is_none_or(|(_, text)| text.is_empty()))
        };
        only_begun() || self.is_a_template()
    }

    fn has_nothing_but(&self, names: &[&str]) -> bool {
        let listed = Dir::read_from(&self.fd).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." && !names.iter().any(|known| known.as_bytes() == name) {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        listed == Ok(true)
    }

    /// Removes what a template has, and then the directory, if it is empty.
    pub(super) fn remove(&self) {
        let mut removed = Ok(());
        // What says that it is ours goes last: whoever is killed here leaves what the next one removes.
        for name in [MEMORY, STATE, ABOUT] {
            removed = removed.and_then(|()| match unlinkat(&self.fd, name, AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                unlinked => unlinked,
            });
        }
        match removed.and_then(|()| rmdir(&self.path)) {
            Ok(()) => tracing::debug!(dir = ?self.path, "removed a template"),
            Err(Errno::NOENT) => {}
            // The next one has its place already, or there is something else in it.
            Err(Errno::NOTEMPTY) => tracing::debug!(dir = ?self.path, "a template's directory stays"),
            Err(error) => tracing::warn!(dir = ?self.path, %error, "cannot remove a template"),
        }
    }
}
