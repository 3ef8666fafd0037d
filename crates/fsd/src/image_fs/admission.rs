//! Which images are taken at all, by what they say of their blobs: a bootstrap may come from anybody.
//!
//! Pure. nydus makes file names and requests of a blob's id, and takes as much memory and as many descriptors as the
//! table of blobs says. What is wrong with files is found when they are looked at, see `operations.rs`.

use std::io;
use std::sync::Arc;

use nydus_storage::device::BlobInfo;

/// An image has a layer's blob for each; each takes a few descriptors.
const MOST_BLOBS: usize = 1024;
/// nydus' own limit, which it does not apply to RAFS v5.
const MOST_CHUNKS: u32 = 1 << 24;
/// Of a blob's table of chunks, which is mapped: that of an indexed layer of some 30 GiB.
const MOST_TABLE_BYTES: u64 = 1 << 30;

/// Why an image isn't taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it names {count} blobs, and {MOST_BLOBS} are the most")]
    Blobs { count: usize },
    #[error("it names a blob {id:?}, which cannot be the name of one")]
    Id { id: String },
    #[error("it has blob {id} with a table of chunks that cannot be")]
    Table { id: String },
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
    infos.iter().find_map(|info| {
        let id = info.blob_id();
        let table = info
            .meta_ci_uncompressed_size()
            .max(info.meta_ci_compressed_size());
        if !is_name(&id) || !is_name(info.raw_blob_id().trim_end_matches('\0')) {
            Some(Refusal::Id { id })
        } else if info.chunk_count() > MOST_CHUNKS || table > MOST_TABLE_BYTES {
            Some(Refusal::Table { id })
        } else {
            None
        }
    })
}

/// Whether it is one name, in a directory and in a URL. Not hexadecimal digits only: nydus-image takes any name.
fn is_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@' | '+' | '=');
    !id.is_empty() && id.len() <= 255 && id.chars().all(plain) && !matches!(id, "." | "..")
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
    fn a_blob_whose_name_leads_elsewhere_is_refused() {
        for id in ["../../etc/shadow", "/etc/shadow", "..", "", "a/b", "a%2fb", "a?b"] {
            let refused = Refusal::Id { id: id.to_owned() };
            assert_eq!(refusal(&[blob("good", 1, 16), blob(id, 1, 16)]), Some(refused));
        }
        for id in ["0af9", "sha256:0af9", "my-blob_1.x"] {
            assert_eq!(refusal(&[blob(id, 1, 16)]), None);
        }
    }

    #[test]
    fn what_takes_too_much_is_refused() {
        let id = || "x".to_owned();
        let many = vec![blob("x", 1, 16); MOST_BLOBS + 1];
        let count = many.len();
        assert_eq!(refusal(&many), Some(Refusal::Blobs { count }));
        assert_eq!(
            refusal(&[blob("x", MOST_CHUNKS + 1, 16)]),
            Some(Refusal::Table { id: id() })
        );
        assert_eq!(
            refusal(&[blob("x", 1, MOST_TABLE_BYTES + 1)]),
            Some(Refusal::Table { id: id() })
        );
    }
}
