//! Digests that can be computed here, and how.
//!
//! Never decides what a wrong digest means: see `verify.rs`.

use std::fmt::Write as _;

use oci_spec::image::{Digest, DigestAlgorithm, Sha256Digest};
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

/// A digest made with an algorithm that is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("digest {digest} is neither sha256 nor sha512")]
pub struct UnsupportedDigest {
    /// The digest.
    pub digest: Digest,
}

/// The SHA-256 digest of `bytes`.
#[must_use]
pub fn sha256_of(bytes: &[u8]) -> Digest {
    Hasher::Sha256(Sha256::new_with_prefix(bytes)).finish()
}

/// Computes a digest of what it is fed.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// One for what has `digest`.
    pub(crate) fn like(digest: &Digest) -> Result<Self, UnsupportedDigest> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::sha256()),
            DigestAlgorithm::Sha512 => Ok(Self::Sha512(Box::default())),
            _ => Err(UnsupportedDigest {
                digest: digest.clone(),
            }),
        }
    }

    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize())
                .parse::<Sha256Digest>()
                .expect("32 bytes in lower-case hexadecimal are a SHA-256 digest")
                .into(),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize()))
                .parse()
                .expect("64 bytes in lower-case hexadecimal are a SHA-512 digest"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
