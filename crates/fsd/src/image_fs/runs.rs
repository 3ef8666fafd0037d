//! Merging of missing chunks into ranged requests. Pure.

use std::ops::Range;

use super::chunk::Chunk;

/// Groups chunks, in order of their numbers, so that each group is one request to the backend.
///
/// Chunks are grouped when they follow each other without another chunk between: a request then covers nothing but
/// what was asked for, and a lock on the group's part of the cache file nothing but what the request will fill. A
/// group holds at least one chunk and otherwise at most `limit` bytes of the blob, and what unpacks to
/// [`CONTENT_LIMIT`].
pub(super) fn merge(chunks: &[Chunk], limit: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    let mut content = chunks.first().map_or(0, |first| u64::from(first.size));
    for at in 1..=chunks.len() {
        let joins = chunks.get(at).is_some_and(|next| {
            content += u64::from(next.size);
            content <= CONTENT_LIMIT
                && follows(&chunks[at - 1], next)
                && next.blob_end() - chunks[start].blob_offset <= limit
        });
        if !joins {
            groups.push(start..at);
            start = at;
            content = chunks.get(at).map_or(0, |next| u64::from(next.size));
        }
    }
    groups
}

/// The most that one request may unpack to, in bytes, if it is for more than one chunk: all of it is in memory at once,
/// and zeros take next to nothing in a blob.
pub(super) const CONTENT_LIMIT: u64 = 32 << 20;

/// Whether `next` is `chunk`'s neighbour in the blob and in the cache.
pub(super) fn follows(chunk: &Chunk, next: &Chunk) -> bool {
    chunk.id.checked_add(1) == Some(next.id)
        && chunk.blob_end() <= next.blob_offset
        // Blobs made of archives have headers between chunks; anything longer is not worth fetching.
        && next.blob_offset - chunk.blob_end() <= MAX_GAP
        && chunk.end() <= next.offset
}

/// The most that may lie between two chunks of one request, in bytes.
const MAX_GAP: u64 = 8192;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::chunk::Checksum;
    use super::*;

    pub(in super::super) fn chunk(
        id: u32,
        blob_offset: u64,
        blob_size: u32,
        offset: u64,
        size: u32,
    ) -> Chunk {
        Chunk {
            id,
            blob_offset,
            blob_size,
            offset,
            size,
            compressed: false,
            encrypted: false,
            is_listed: true,
            checksum: Checksum::None,
        }
    }

    fn row(ids: &[u32]) -> Vec<Chunk> {
        ids.iter()
            .map(|id| chunk(*id, u64::from(*id) * 100, 100, u64::from(*id) * 4096, 4096))
            .collect()
    }

    #[test]
    fn what_unpacks_to_much_is_several_requests() {
        let large = |id: u32| chunk(id, u64::from(id), 1, u64::from(id) << 24, 1 << 24);
        let chunks: Vec<Chunk> = (0..7).map(large).collect();
        assert_eq!(merge(&chunks, 1000), [0..2, 2..4, 4..6, 6..7]);
        let huge = chunk(0, 0, 1, 0, 48 << 20);
        assert_eq!(
            merge(&[huge, large(3)], 1000),
            [0..1, 1..2],
            "one is taken whatever it is"
        );
    }

    #[test]
    fn neighbours_are_one_request_and_others_are_not() {
        assert_eq!(merge(&[], 1000), Vec::<Range<usize>>::new());
        assert_eq!(
            merge(&row(&[3]), 1).first(),
            Some(&(0..1)),
            "one chunk is over no limit"
        );
        assert_eq!(merge(&row(&[3, 4, 5, 9, 10, 12]), 1000), [0..3, 3..5, 5..6]);
        assert_eq!(merge(&row(&[0, 1, 2, 3, 4]), 200), [0..2, 2..4, 4..5]);
        let mut far = row(&[0, 1]);
        far[1].blob_offset += MAX_GAP + 1;
        assert_eq!(merge(&far, u64::MAX), [0..1, 1..2]);
        let mut back = row(&[0, 1]);
        back[1].blob_offset = 50;
        assert_eq!(merge(&back, u64::MAX), [0..1, 1..2]);
    }

    proptest! {
        #[test]
        fn every_chunk_is_in_one_group_and_no_group_is_over_the_limit(
            ids in proptest::collection::btree_set(0_u32..64, 0..40), limit in 1_u64..2000
        ) {
            let chunks = row(&ids.into_iter().collect::<Vec<_>>());
            let groups = merge(&chunks, limit);
            prop_assert_eq!(groups.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..chunks.len()).collect::<Vec<_>>());
            for group in groups {
                let (first, last) = (&chunks[group.start], &chunks[group.end - 1]);
                let count = u32::try_from(group.len()).unwrap_or_default();
                prop_assert_eq!(last.id - first.id + 1, count, "nothing is between");
                prop_assert!(count == 1 || last.blob_end() - first.blob_offset <= limit);
            }
        }
    }
}
