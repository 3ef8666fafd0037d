//! Sizes on the command line: a number of bytes, or one with K, M, G (powers of 1024).

use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(u64);

impl Size {
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

/// A text that is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size; give a number with an optional K, M or G, such as 512M")]
pub(crate) struct SizeError {
    text: String,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let shift = match text.chars().last() {
            Some('K' | 'k') => 10,
            Some('M' | 'm') => 20,
            Some('G' | 'g') => 30,
            _ => 0,
        };
        let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| SizeError {
                text: text.to_owned(),
            })
    }
}

/// What a cache may take: a size, or `none` for as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheQuota(Option<Size>);

impl CacheQuota {
    /// In bytes, if there is a limit.
    pub(crate) fn bytes(self) -> Option<u64> {
        self.0.map(Size::bytes)
    }
}

impl FromStr for CacheQuota {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        match text {
            "none" => Ok(Self(None)),
            size => size.parse().map(|size| Self(Some(size))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("4K".parse(), Ok(Size(4096)));
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        for bad in ["", "K", "1T", "-1", "1.5G", "99999999999G"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?} was accepted");
        }
    }
}
