//! A deterministic source tree with everything that goes wrong in file systems: sizes around every
//! boundary, deep paths, symlinks, hard links, xattrs, setuid, names that are no UTF-8, a crowded
//! directory. And the sum of a tree on the host, to compare with what the guest saw.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, lsetxattr};
use sha2::{Digest, Sha256};

use crate::guest::fuse::paths::{Content, Leaf, TreeSum};

/// File sizes in a generated tree: around pages, chunks and requests.
pub const SIZES: [usize; 12] = [
    0, 1, 511, 4095, 4096, 4097, 65_536, 131_073, 1_048_575, 1_048_576, 1_048_577, 5_000_000,
];

/// Entries in the crowded directory: more than one listing holds.
pub const CROWD: usize = 1500;

/// Pseudo-random but half compressible bytes; equal seeds give equal bytes.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        // xorshift64, then a run of zeros: compressors have to work, but gain something.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
        out.extend([0; 8]);
    }
    out.truncate(len);
    out
}

/// Fills an existing, empty directory.
///
/// # Errors
/// What the file system said. Extended attributes are left out where it has none.
pub fn generate(root: &Path) -> io::Result<()> {
    let dir = |name: &str| fs::create_dir_all(root.join(name));
    for name in ["sizes", "links", "odd", "modes", "crowd", "empty"] {
        dir(name)?;
    }
    for (seed, size) in SIZES.iter().enumerate() {
        fs::write(root.join(format!("sizes/{size}")), bytes(seed as u64 + 1, *size))?;
    }
    let deep = format!("deep{}", "/level".repeat(40));
    dir(&deep)?;
    fs::write(root.join(&deep).join("bottom"), b"as deep as it gets\n")?;

    symlink("../sizes/4097", root.join("links/relative"))?;
    symlink("/absolute/and/dangling", root.join("links/dangling"))?;
    symlink("x".repeat(1000), root.join("links/long"))?;
    fs::write(root.join("links/first"), bytes(100, 10_000))?;
    fs::hard_link(root.join("links/first"), root.join("links/second"))?;
    fs::hard_link(root.join("links/first"), root.join("links/third"))?;

    for name in [
        &b"\xff\xfe not utf-8"[..],
        b"new\nline",
        b"space and 'quote'",
        "gr\u{fc}\u{df}e \u{1f980}".as_bytes(),
    ] {
        fs::write(root.join("odd").join(OsStr::from_bytes(name)), name)?;
    }
    fs::write(root.join("odd").join("n".repeat(255)), b"the longest name")?;

    for mode in [0o4755, 0o2755, 0o1777, 0o400, 0o000, 0o644] {
        let path = root.join(format!("modes/{mode:o}"));
        fs::write(&path, b"mode")?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for i in 0..CROWD {
        fs::write(root.join(format!("crowd/entry-{i:05}")), i.to_string())?;
    }
    let attributed = root.join("odd/attributes");
    fs::write(&attributed, b"has attributes")?;
    for (name, value) in XATTRS {
        match lsetxattr(&attributed, *name, value, XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    File::open(root)?.sync_all()
}

/// The extended attributes of `odd/attributes`.
pub const XATTRS: &[(&str, &[u8])] = &[("user.short", b"value"), ("user.binary", &[0, 1, 0xff, 0])];

/// Sums a tree on the host up, in the form of [`crate::guest::FuseClient::checksum_tree`].
///
/// # Errors
/// What the file system said.
pub fn sum(root: &Path) -> io::Result<TreeSum> {
    let mut sum = TreeSum::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let content = if meta.is_dir() {
                stack.push(path.clone());
                Content::Directory
            } else if meta.is_symlink() {
                Content::Symlink(fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
            } else if meta.is_file() {
                let bytes = fs::read(&path)?;
                Content::File(bytes.len() as u64, Sha256::digest(&bytes).into())
            } else {
                Content::Special(u32::try_from(meta.rdev()).unwrap_or(u32::MAX))
            };
            let relative = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .as_os_str()
                .as_bytes()
                .to_vec();
            sum.insert(
                relative,
                Leaf {
                    mode: meta.mode(),
                    uid: meta.uid(),
                    gid: meta.gid(),
                    content,
                },
            );
        }
    }
    Ok(sum)
}
