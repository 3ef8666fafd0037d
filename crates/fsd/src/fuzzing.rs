//! An image that is mounted and looked at as a guest would, without one, and a program's file: for the fuzz targets and
//! nobody else, and no part of what this crate promises.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use nydusbox_protocol::{MountCommand, MountPoint};

use crate::metrics::Tallies;
use crate::namespace::{MountError, Namespace};

/// Inodes that are looked at of one image.
const INODES: usize = 200;
/// What a guest's READDIR has room for, in bytes.
const LISTING: u32 = 4096;

/// Mounts an image and asks for all of it that can be had without its blobs; with `lays_out`, where its files' data
/// are, too, which has nydus read the blobs' tables. A panic in a request is EIO, as it is for a guest.
///
/// # Errors
/// Why it isn't mounted.
pub fn mount_and_walk(command: &MountCommand, lays_out: bool) -> Result<(), MountError> {
    let namespace = Namespace::new(Arc::new(Tallies::new(0)));
    let root = MountPoint::new("/").expect("the root is a mount point");
    namespace.mount(&root, command)?;
    let walk = Walk {
        vfs: namespace.vfs(),
        context: Context::new(),
    };
    let mut pending = VecDeque::from([ROOT_ID]);
    for _ in 0..INODES {
        let Some(inode) = pending.pop_front() else { break };
        walk.look_at(inode);
        if lays_out {
            let _ = guarded(|| namespace.lay_out(&root, inode));
        }
        pending.extend(walk.children(inode));
        pending.truncate(INODES);
    }
    let _ = namespace.superblock(&root);
    let _ = guarded(|| namespace.start_trace(&root));
    let _ = guarded(|| namespace.trace(&root).map(drop));
    if let Some(record) = namespace.record(&root) {
        let _ = record.first_blob();
    }
    namespace.umount(&root)
}

struct Walk {
    vfs: Arc<Vfs>,
    context: Context,
}

impl Walk {
    fn look_at(&self, inode: u64) {
        let (vfs, context) = (&self.vfs, &self.context);
        let _ = guarded(|| vfs.getattr(context, inode.into(), None));
        let _ = guarded(|| vfs.access(context, inode.into(), 7));
        let _ = guarded(|| vfs.readlink(context, inode.into()));
        let _ = guarded(|| vfs.statfs(context, inode.into()));
        let _ = guarded(|| vfs.listxattr(context, inode.into(), 1 << 16));
        let _ = guarded(|| vfs.getxattr(context, inode.into(), c"security.capability", 1 << 16));
    }

    /// What is in a directory: listed in pieces, and each name looked up.
    fn children(&self, inode: u64) -> Vec<u64> {
        let (vfs, context) = (&self.vfs, &self.context);
        let mut found = Vec::new();
        let mut cookie = 0;
        while found.len() < INODES {
            let mut names = Vec::new();
            let mut room = LISTING;
            let listed = guarded(|| {
                vfs.readdirplus(context, inode.into(), 0, LISTING, cookie, &mut |entry, _| {
                    let bytes = u32::try_from(entry.name.len() + 24).unwrap_or(LISTING);
                    if bytes > room {
                        return Ok(0);
                    }
                    room -= bytes;
                    names.push((entry.name.to_vec(), entry.offset));
                    Ok(bytes as usize)
                })
            });
            let Some((_, offset)) = names.last() else { break };
            cookie = *offset;
            for (name, _) in names {
                let Ok(name) = CString::new(name) else { continue };
                let entry = guarded(|| vfs.lookup(context, inode.into(), &name));
                if let Some(Ok(entry)) = entry
                    && !matches!(name.to_bytes(), b"." | b"..")
                {
                    found.push(entry.inode);
                }
            }
            if !matches!(listed, Some(Ok(()))) {
                break;
            }
        }
        found
    }
}

/// What an executable names, as far as it is read before it is started: how many libraries, and the longest name of
/// all it names, in bytes; nothing if it is no program.
pub fn program_needs(file: &[u8]) -> Option<(usize, usize)> {
    let needs = crate::image_fs::needs_of(Cursor::new(file))?;
    let libraries = needs.libraries.iter().map(|name| name.len());
    let paths = needs.interpreter.iter().chain(&needs.search);
    let longest = libraries.chain(paths.map(|path| path.as_os_str().len())).max();
    Some((needs.libraries.len(), longest.unwrap_or_default()))
}

/// As `fuse` has it.
fn guarded<T>(request: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(request)).ok()
}
