//! Two walks that give the same answer for a tree and for its image, content included.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_rafs::metadata::{RafsInodeExt, RafsSuper};
use nydus_storage::device::BlobInfo;
use nydus_utils::{compress, digest};
use nydusbox_image::ImageDir;

/// What has to survive of a file, directory, link or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    owner: (u32, u32),
    /// Seconds; an archive has no more. The root's isn't kept.
    mtime: i64,
    /// Of devices only.
    device: Option<u64>,
    /// Of symbolic links only.
    target: Option<OsString>,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Of regular files only.
    pub(crate) content: Option<digest::RafsDigest>,
    /// The first path, in order, that is the same file.
    same_as: PathBuf,
    links: u64,
}

pub(crate) type Entries = BTreeMap<PathBuf, Entry>;

/// The first difference, in words; whole trees are too much to read.
pub(crate) fn assert_same(left: &Entries, right: &Entries) {
    let paths = |entries: &Entries| entries.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(left), paths(right));
    for (path, entry) in left {
        assert_eq!(entry, &right[path], "{}", path.display());
    }
}

/// The same, for what `nydus-image unpack` carries.
pub(crate) fn assert_same_content(left: &Entries, right: &Entries) {
    let carried = |entries: &Entries| -> Vec<_> {
        let entries = entries.iter().filter(|(path, _)| *path != Path::new("/"));
        entries
            .map(|(path, entry)| {
                let Entry {
                    mode,
                    owner,
                    device,
                    target,
                    content,
                    same_as,
                    ..
                } = entry.clone();
                (path.clone(), mode, owner, device, target, content, same_as)
            })
            .collect()
    };
    for (left, right) in std::iter::zip(carried(left), carried(right)) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
}

pub(crate) fn tree(root: &Path) -> Entries {
    let mut entries = Entries::new();
    let mut inodes: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut paths = vec![];
    collect(root, &mut paths);
    paths.sort();
    for path in paths {
        let meta = path.symlink_metadata().unwrap();
        let name = Path::new("/").join(path.strip_prefix(root).unwrap());
        let kind = meta.file_type();
        let is_root = path == root;
        let subdirectories = |path: &Path| {
            path.read_dir()
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir())
                .count()
        };
        entries.insert(
            name.clone(),
            Entry {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                mtime: if is_root { 0 } else { meta.mtime() },
                device: (kind.is_block_device() || kind.is_char_device()).then(|| meta.rdev()),
                target: kind
                    .is_symlink()
                    .then(|| fs::read_link(&path).unwrap().into_os_string()),
                xattrs: xattrs(&path),
                content: kind.is_file().then(|| {
                    digest::RafsDigest::from_buf(&fs::read(&path).unwrap(), digest::Algorithm::Sha256)
                }),
                // Some file systems give directories a link count of 1.
                links: if kind.is_dir() {
                    2 + subdirectories(&path) as u64
                } else {
                    meta.nlink()
                },
                same_as: inodes.entry((meta.dev(), meta.ino())).or_insert(name).clone(),
            },
        );
    }
    entries
}

fn collect(path: &Path, paths: &mut Vec<PathBuf>) {
    paths.push(path.to_owned());
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            collect(&entry.unwrap().path(), paths);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut list = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = std::ffi::OsStr::from_bytes(name);
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_owned(), value)
        })
        .collect()
}

pub(crate) fn image(image: &ImageDir) -> Entries {
    bootstrap(&image.bootstrap(), &image.blob_dir())
}

/// The same for a bootstrap whose blobs are in `blob_dir`.
pub(crate) fn bootstrap(bootstrap: &Path, blob_dir: &Path) -> Entries {
    let (rafs, _) = RafsSuper::load_from_file(bootstrap, Arc::new(ConfigV2::default()), false).unwrap();
    let blobs = rafs.superblock.get_blob_infos();
    let mut found = inodes(&rafs);
    found.sort_by(|left, right| left.0.cmp(&right.0));

    let mut inodes: HashMap<u64, PathBuf> = HashMap::new();
    let mut entries = Entries::new();
    for (path, inode) in found {
        let attr = inode.get_attr();
        let names = inode.get_xattrs().unwrap();
        entries.insert(
            path.clone(),
            Entry {
                mode: attr.mode,
                owner: (attr.uid, attr.gid),
                mtime: if path == Path::new("/") {
                    0
                } else {
                    i64::try_from(attr.mtime).unwrap()
                },
                device: (inode.is_blkdev() || inode.is_chrdev()).then(|| device(attr.rdev)),
                target: inode.is_symlink().then(|| inode.get_symlink().unwrap()),
                xattrs: names
                    .into_iter()
                    .map(|name| {
                        use std::os::unix::ffi::OsStringExt;
                        let name = OsString::from_vec(name);
                        let value = inode.get_xattr(&name).unwrap().unwrap();
                        (name, value)
                    })
                    .collect(),
                content: inode.is_reg().then(|| {
                    digest::RafsDigest::from_buf(
                        &content(blob_dir, &blobs, &*inode),
                        digest::Algorithm::Sha256,
                    )
                }),
                links: u64::from(attr.nlink),
                same_as: inodes.entry(inode.ino()).or_insert(path).clone(),
            },
        );
    }
    entries
}

/// A device number in the 32 bits of the wire, as the kernel decodes it (`new_decode_dev`).
fn device(encoded: u32) -> u64 {
    rustix::fs::makedev(
        (encoded & 0xf_ff00) >> 8,
        (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00),
    )
}

/// A file's content, chunk by chunk out of the blobs.
fn content(blob_dir: &Path, blobs: &[Arc<BlobInfo>], inode: &dyn RafsInodeExt) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut content = Vec::new();
    for index in 0..inode.get_chunk_count() {
        let chunk = inode.get_chunk_info(index).unwrap();
        let blob = &blobs[usize::try_from(chunk.blob_index()).unwrap()];
        let file = fs::File::open(blob_dir.join(blob.blob_id())).unwrap();
        let mut stored = vec![0; usize::try_from(chunk.compressed_size()).unwrap()];
        file.read_exact_at(&mut stored, chunk.compressed_offset())
            .unwrap();
        if chunk.is_compressed() {
            let mut plain = vec![0; usize::try_from(chunk.uncompressed_size()).unwrap()];
            assert_eq!(
                compress::decompress(&stored, &mut plain, blob.compressor()).unwrap(),
                plain.len()
            );
            stored = plain;
        }
        content.append(&mut stored);
    }
    content
}

/// An image's paths in order: directories end in a slash, files have their content, links their target.
pub(crate) fn list(of: &ImageDir) -> Vec<String> {
    let (rafs, _) = RafsSuper::load_from_file(of.bootstrap(), Arc::new(ConfigV2::default()), false).unwrap();
    let blobs = rafs.superblock.get_blob_infos();
    let mut found = inodes(&rafs);
    found.sort_by(|left, right| left.0.cmp(&right.0));
    found
        .into_iter()
        .map(|(path, inode)| {
            let path = path.to_str().unwrap();
            if inode.is_dir() {
                format!("{}/", path.trim_end_matches('/'))
            } else if inode.is_symlink() {
                format!("{path}->{}", inode.get_symlink().unwrap().display())
            } else {
                let content = content(&of.blob_dir(), &blobs, &*inode);
                format!("{path}={}", String::from_utf8(content).unwrap())
            }
        })
        .collect()
}

/// Modification times of an image's files, seconds and nanoseconds.
pub(crate) fn times(of: &ImageDir) -> Vec<(OsString, (i64, u32))> {
    let (rafs, _) = RafsSuper::load_from_file(of.bootstrap(), Arc::new(ConfigV2::default()), false).unwrap();
    let mut times: Vec<_> = inodes(&rafs)
        .into_iter()
        .filter(|(_, inode)| inode.is_reg())
        .map(|(path, inode)| {
            let attr = inode.get_attr();
            (path.into_os_string(), (attr.mtime.cast_signed(), attr.mtimensec))
        })
        .collect();
    times.sort();
    times
}

/// Link counts of an image's files, and the first name of each.
pub(crate) fn links(of: &ImageDir) -> Vec<(PathBuf, u64, PathBuf)> {
    let files = image(of).into_iter().filter(|(_, entry)| entry.content.is_some());
    files
        .map(|(path, entry)| (path, entry.links, entry.same_as))
        .collect()
}

/// A file's mode with its type.
pub(crate) fn mode(of: &ImageDir, path: &str) -> u32 {
    image(of)[Path::new(path)].mode
}

fn inodes(rafs: &RafsSuper) -> Vec<(PathBuf, Arc<dyn RafsInodeExt>)> {
    let mut found = vec![];
    rafs.walk_directory(rafs.superblock.root_ino(), None::<&Path>, &mut |inode, path| {
        found.push((path.to_owned(), inode));
        Ok(())
    })
    .unwrap();
    found
}
