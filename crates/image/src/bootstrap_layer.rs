//! The layer of an image that has its bootstrap: which one that is, and the bootstrap out of it.
//!
//! Never looks into a bootstrap but for its version: that is `rafs/load.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::config::FsVersion;
use crate::convert::BOOTSTRAP;
use crate::layers::{TarStream, decompressed};
use crate::rafs::load::version_of;
use crate::source::Descriptor;
use crate::source::blob_dir::{beside, persist};

/// Larger than that of any image there is; nobody gets to fill the disk with one.
const MAX_BOOTSTRAP_BYTES: u64 = 1 << 30;
const COMPARE_BYTES: usize = 128 << 10;

/// The layer with the bootstrap, if the image is in nydus' form: the last one.
pub(crate) fn bootstrap_layer(layers: &[Descriptor]) -> Option<&Descriptor> {
    let marked = |layer: &&Descriptor| {
        let annotations = layer.annotations().as_ref();
        annotations.is_some_and(|all| all.contains_key(BOOTSTRAP))
    };
    layers.last().filter(marked)
}

/// Copies the bootstrap in a layer to `out`; the rest of the layer is read too, so that its digest is checked.
pub(crate) fn unpack_bootstrap(layer: impl Read + Send, mut out: &File) -> io::Result<()> {
    let mut archive = TarStream::new(decompressed(layer)?);
    let mut found = false;
    while let Some(entry) = archive.next_entry()? {
        // As old converters have it, or as new ones.
        let is_bootstrap = matches!(&*entry.path, b"image/image.boot" | b"image.boot");
        if !found && is_bootstrap && entry.type_flag == b'0' {
            found = true;
            if entry.size > MAX_BOOTSTRAP_BYTES {
                return Err(io::Error::other("the bootstrap is larger than 1 GiB"));
            }
            io::copy(&mut archive, &mut out)?;
        }
    }
    archive.finish()?;
    if found {
        Ok(())
    } else {
        Err(io::Error::other("it has no image/image.boot"))
    }
}

/// The same into a file at `path`, and its version and length. One that is right already stays the file it is, which
/// others may have locked.
pub(crate) fn unpack_bootstrap_to(layer: impl Read + Send, path: &Path) -> io::Result<(FsVersion, u64)> {
    let unpacked = beside(path.parent().unwrap_or(Path::new("/")))?;
    let file = unpacked.as_file();
    unpack_bootstrap(layer, file)?;
    let (version, bytes) = (version_of(file)?, file.metadata()?.len());
    if !File::open(path).is_ok_and(|there| is_same(file, &there).unwrap_or(false)) {
        persist(unpacked, path)?;
    }
    Ok((version, bytes))
}

/// Whether two files have the same content, of which only a piece is in memory at a time.
fn is_same(left: &File, right: &File) -> io::Result<bool> {
    if left.metadata()?.len() != right.metadata()?.len() {
        return Ok(false);
    }
    let (mut of_left, mut of_right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut at = 0;
    loop {
        let got = left.read_at(&mut of_left, at)?;
        if got == 0 {
            return Ok(true);
        }
        right.read_exact_at(&mut of_right[..got], at)?;
        if of_left[..got] != of_right[..got] {
            return Ok(false);
        }
        at += got as u64;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn header(kind: tar::EntryType, name: &str, bytes: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn file(name: &str, content: &[u8]) -> Vec<u8> {
        let mut entry = header(tar::EntryType::Regular, name, content.len() as u64);
        entry.extend_from_slice(content);
        entry.resize(entry.len().next_multiple_of(512), 0);
        entry
    }

    fn unpacked(layer: &[u8]) -> io::Result<Vec<u8>> {
        let out = tempfile::NamedTempFile::new().unwrap();
        unpack_bootstrap(io::Cursor::new(layer.to_vec()), out.as_file())?;
        fs::read(out.path())
    }

    #[test]
    fn a_bootstrap_is_found_by_either_name() {
        for name in ["image/image.boot", "image.boot"] {
            let others = [
                file("image/other", b"x"),
                file(name, b"it"),
                file(name, b"another"),
            ];
            assert_eq!(unpacked(&others.concat()).unwrap(), b"it", "{name}");
        }
        unpacked(&file("image/other", b"x")).unwrap_err();
        unpacked(&header(tar::EntryType::Directory, "image.boot", 0)).unwrap_err();
    }

    #[test]
    fn of_a_header_that_says_it_goes_on_for_ever_nothing_is_kept() {
        use tar::EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
        for kind in [GNULongName, GNULongLink, XHeader, XGlobalHeader] {
            // Whoever reads on gets what a small gzip unpacks to.
            let endless = io::repeat(b'x').take(64 << 20);
            let layer = header(kind, "image.boot", 64 << 20);
            let mut layer = io::Cursor::new(layer).chain(endless);
            let out = tempfile::tempfile().unwrap();
            let error = unpack_bootstrap(&mut layer, &out).unwrap_err();
            assert!(error.to_string().contains("extended headers"), "{error}");
            let left = layer.into_inner().1.limit();
            assert!(left > (64 << 20) - (1 << 20), "{left} bytes were not read");
        }
        unpacked(&header(
            tar::EntryType::Regular,
            "image.boot",
            MAX_BOOTSTRAP_BYTES + 1,
        ))
        .unwrap_err();
    }

    #[test]
    fn a_bootstrap_that_is_there_stays_the_file_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap");
        // A superblock of RAFS v6, and pieces of which the last are not whole.
        let mut content = vec![7; 2 * COMPARE_BYTES + 5];
        content[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        let unpack = |content: &[u8]| {
            let layer = file("image.boot", content);
            unpack_bootstrap_to(io::Cursor::new(layer), &path).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
            fs::metadata(&path).unwrap().ino()
        };
        let first = unpack(&content);
        assert_eq!(unpack(&content), first);
        *content.last_mut().unwrap() = 8;
        let second = unpack(&content);
        assert_ne!(second, first);
        let cut = fs::OpenOptions::new().append(true).open(&path).unwrap();
        (&cut).write_all(b"more").unwrap();
        assert_ne!(unpack(&content), second);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
    }
}
