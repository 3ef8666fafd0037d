//! Which images are taken at all, by what they say of their blobs: a bootstrap may come from anybody.
//!
//! Pure. nydus makes file names and requests of a blob's id, and takes as much memory and as many descriptors as the
//! table of blobs says. What is wrong with files is found when they are looked at, see `operations.rs`.

use std::io;
use std::sync::Arc;

use nydus_storage::device::BlobInfo;

/// An image has a layer's blob for each; each takes a few descriptors.
const MOST_BLOBS: usize = 1024;
/// Of all blobs together: nydus' own limit for one, which it does not apply to RAFS v5.
const MOST_CHUNKS: u64 = 1 << 24;
/// Of all blobs' tables of chunks together, which are mapped: those of indexed layers of some 30 GiB.
const MOST_TABLE_BYTES: u64 = 1 << 30;

/// Why an image isn't taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it names {count} blobs, and {MOST_BLOBS} are the most")]
    Blobs { count: usize },
    #[error("it names a blob {id:?}, which cannot be the name of one")]
    Id { id: String },
    #[error("its blobs have {count} chunks, and {MOST_CHUNKS} are the most")]
    Chunks { count: u64 },
    #[error("its blobs have tables of chunks of {bytes} bytes, and {MOST_TABLE_BYTES} are the most")]
    Tables { bytes: u64 },
}

/// Whether an image with these blobs is taken.
///
/// # Errors
/// A [`Refusal`].
pub(super) fn check(infos: &[Arc<BlobInfo>]) -> io::Result<()> {
    refusal(infos).map_or(Ok(()), |refusal| {
        Err(io::Error::new(io::ErrorKind::InvalidData, refusal))
    })
}

fn refusal(infos: &[Arc<BlobInfo>]) -> Option<Refusal> {
    if infos.len() > MOST_BLOBS {
        return Some(Refusal::Blobs { count: infos.len() });
    }
    let nameless = infos
        .iter()
        .find(|info| !is_name(&info.blob_id()) || !is_name(info.raw_blob_id().trim_end_matches('\0')));
    if let Some(info) = nameless {
        return Some(Refusal::Id { id: info.blob_id() });
    }
    let table = |info: &BlobInfo| {
        info.meta_ci_uncompressed_size()
            .max(info.meta_ci_compressed_size())
    };
    // Of the sum, because a bootstrap of a few KiB can name a thousand blobs.
    let count = infos.iter().map(|info| u64::from(info.chunk_count())).sum();
    let bytes = infos
        .iter()
        .fold(0, |sum: u64, info| sum.saturating_add(table(info)));
    if count > MOST_CHUNKS {
        Some(Refusal::Chunks { count })
    } else if bytes > MOST_TABLE_BYTES {
        Some(Refusal::Tables { bytes })
    } else {
        None
    }
}

/// How the id of a blob ends whose old chunk map (`<id>.chunk_map`) would be another blob's present one.
const ANOTHERS: &str = ".blob.data";

/// Whether it is one name, in a directory and in a URL. Not hexadecimal digits only: nydus-image takes any name.
fn is_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@' | '+' | '=');
    let named = !id.is_empty() && id.len() <= 255 && id.chars().all(plain) && !matches!(id, "." | "..");
    named && !id.ends_with(ANOTHERS)
}

#[cfg(test)]
mod tests {
    use nydus_storage::device::BlobFeatures;

    use super::*;

    fn blob(id: &str, chunks: u32, table: u64) -> Arc<BlobInfo> {
        let features = BlobFeatures::empty();
        let mut info = BlobInfo::new(0, id.to_owned(), 1 << 20, 1 << 20, 1 << 20, chunks, features);
        info.set_blob_meta_info(0, table, table, 0);
        Arc::new(info)
    }

    #[test]
    fn a_blob_whose_name_leads_elsewhere_or_to_anothers_files_is_refused() {
        for id in [
            "../../etc/shadow",
            "/etc/shadow",
            "..",
            "",
            "a/b",
            "a%2fb",
            "a?b",
            "good.blob.data",
        ] {
            let refused = Refusal::Id { id: id.to_owned() };
            assert_eq!(refusal(&[blob("good", 1, 16), blob(id, 1, 16)]), Some(refused));
        }
        for id in ["0af9", "sha256:0af9", "my-blob_1.x", "my.blob"] {
            assert_eq!(refusal(&[blob(id, 1, 16)]), None);
        }
    }

    #[test]
    fn what_takes_too_much_is_refused() {
        let many = vec![blob("x", 1, 16); MOST_BLOBS + 1];
        let count = many.len();
        assert_eq!(refusal(&many), Some(Refusal::Blobs { count }));
        // A little of each blob, and too much in all.
        let chunks = (1 << 24) / 1000;
        let (bytes, count) = (MOST_TABLE_BYTES / 1000, u64::from(chunks) * 1000);
        let blobs = |chunks, bytes| vec![blob("x", chunks, bytes); 1000];
        assert_eq!(refusal(&blobs(chunks, bytes)), None);
        assert_eq!(
            refusal(&blobs(chunks + 1, 16)),
            Some(Refusal::Chunks { count: count + 1000 })
        );
        let bytes = (bytes + 1) * 1000;
        assert_eq!(refusal(&blobs(1, bytes / 1000)), Some(Refusal::Tables { bytes }));
        let (bytes, too_much) = (u64::MAX, vec![blob("x", 1, u64::MAX); 2]);
        assert_eq!(refusal(&too_much), Some(Refusal::Tables { bytes }));
    }
}
