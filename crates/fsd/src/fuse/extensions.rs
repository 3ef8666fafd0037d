//! Extensions at the end of a request: supplementary groups (`FUSE_CREATE_SUPP_GROUP`, FUSE 7.38).
//!
//! The FUSE library knows nothing of them. They are asked for in the answer to FUSE_INIT (`init.rs`), and what the guest
//! then sends is read here.

use super::request::{IN_HEADER_LEN, Request};

/// `FUSE_EXT_GROUPS`.
const GROUPS: u32 = 32;
/// `NGROUPS_MAX` is 65536; a guest sends the one that matters.
const MOST_GROUPS: usize = 1024;

/// The supplementary groups of whoever makes a request.
pub(super) fn groups(request: &Request<'_>) -> Vec<u32> {
    let Some(from) = request
        .len
        .checked_sub(request.extensions)
        .filter(|from| *from >= IN_HEADER_LEN)
    else {
        return Vec::new();
    };
    let raw = request.part(from as usize, request.extensions as usize);
    raw.map(parse).unwrap_or_default()
}

fn word(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// `fuse_ext_header { size, type }`, one after the other; that of groups has a count and the groups.
fn parse(mut raw: &[u8]) -> Vec<u32> {
    while raw.len() >= 8 {
        let size = word(raw, 0) as usize;
        if size < 8 || size > raw.len() {
            break;
        }
        if word(raw, 4) == GROUPS {
            let count = (word(raw, 8) as usize)
                .min(MOST_GROUPS)
                .min(size.saturating_sub(12) / 4);
            return (0..count).map(|n| word(raw, 12 + n * 4)).collect();
        }
        raw = &raw[size..];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn groups_are_found_behind_other_extensions() {
        assert_eq!(
            parse(&words(&[16, 1, 7, 7, 24, GROUPS, 2, 100, 200, 0])),
            [100, 200]
        );
    }

    #[test]
    fn a_lying_extension_names_no_group() {
        for lie in [&[0, GROUPS, 1, 5][..], &[400, GROUPS, 1, 5], &[8, GROUPS], &[4]] {
            assert!(parse(&words(lie)).is_empty(), "{lie:?}");
        }
        // It says more than there is room for.
        assert_eq!(parse(&words(&[16, GROUPS, u32::MAX, 5])), [5]);
    }
}
