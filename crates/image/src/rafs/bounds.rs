//! What a bootstrap can't have us do, whatever it says: take more memory than one of its length has content for, and
//! leave the directory its blobs are in.
//!
//! Pure. A bootstrap is a web of offsets; nothing in the format keeps it from naming the same bytes again and again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::blob::Blob;

/// Bytes in memory for each byte of a bootstrap. The most that a real one has is a file with a long path, of which
/// the bootstrap has the last name and some 50 bytes.
const BYTES_FOR_A_BYTE: u64 = 64;
/// What a bootstrap of any length may take.
const BASE_BYTES: u64 = 1 << 20;
/// No file system has longer paths, and the bootstrap of a layer none either.
pub(super) const PATH_MAX_BYTES: usize = 4095;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it names more files, or has more said of them, than one of its length can")]
pub(super) struct TooMuch;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it names a blob {id:?}, which cannot be the name of one")]
pub(super) struct BadBlobId {
    id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has a file named {name:?}, and none can be named so")]
pub(super) struct BadName {
    pub(super) name: OsString,
}

/// What may still be read out of a bootstrap.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    pub(super) fn of(bootstrap_bytes: u64) -> Self {
        Self {
            left: bootstrap_bytes
                .saturating_mul(BYTES_FOR_A_BYTE)
                .saturating_add(BASE_BYTES),
        }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.left = self.left.checked_sub(bytes as u64).ok_or(TooMuch)?;
        Ok(())
    }
}

/// Refuses blobs whose ids would lead out of the directory, or the repository, that they are looked for in.
pub(super) fn check_ids(blobs: &[Blob]) -> Result<(), BadBlobId> {
    match blobs.iter().find(|blob| !is_name(&blob.id)) {
        Some(blob) => Err(BadBlobId { id: blob.id.clone() }),
        None => Ok(()),
    }
}

/// Whether a file can have this name.
pub(super) fn is_file_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty() && bytes.len() <= 255 && !bytes.contains(&b'/') && !bytes.contains(&0)
}

/// Not hexadecimal digits only: nydus-image takes any name for a blob.
fn is_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@' | '+' | '=');
    !id.is_empty() && id.len() <= 255 && id.chars().all(plain) && !matches!(id, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_one_plain_name() {
        for name in ["a", "sha256:00ff", "x.y-z_1", "..a"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/shadow",
            "a\0b",
            "a b",
            "a%2fb",
            "ä",
            "a?b",
            "a#b",
        ] {
            assert!(!is_name(name), "{name}");
        }
        assert!(!is_name(&"x".repeat(256)));
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget::of(10);
        assert_eq!(budget.take(1 << 20), Ok(()));
        assert_eq!(budget.take(640), Ok(()));
        assert_eq!(budget.take(1), Err(TooMuch));
    }
}
