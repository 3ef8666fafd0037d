//! The records of a pax extended header: `LENGTH KEY=VALUE\n`, in which a value may hold any byte.
//!
//! Pure. Our own instead of the `tar` crate's, which ends a record at the first newline and so loses, for one,
//! a file capability that has the byte 0x0a in it. Read `tar_stream.rs` for who uses the result.

use super::error::TarProblem;
use super::tar_sparse::SparseHeader;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extended headers said about the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseHeader,
}

impl Pax {
    /// Adds the records of one extended header.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TarProblem> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarProblem::PaxRecord)?;
            self.apply(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarProblem> {
        // An empty value takes back what a global header said; those are not looked at.
        let set = |value: &[u8]| (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = set(value),
            b"linkpath" => self.link_path = set(value),
            b"size" => self.size = integer(value)?.map(u64::try_from).transpose().map_err(wrong)?,
            b"uid" => self.uid = integer(value)?,
            b"gid" => self.gid = integer(value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.apply(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

/// A decimal number; none when there are no digits at all.
pub(super) fn integer(value: &[u8]) -> Result<Option<i64>, TarProblem> {
    if value.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(value).map_err(wrong)?;
    text.parse().map(Some).map_err(wrong)
}

/// `[-]SECONDS[.FRACTION]`, as seconds rounded down and nanoseconds.
fn time(value: &[u8]) -> Result<(i64, u32), TarProblem> {
    let text = str::from_utf8(value).map_err(wrong)?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TarProblem::Number);
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().map_err(wrong)?;
    let whole: i64 = seconds.parse().map_err(wrong)?;
    if seconds.starts_with('-') && nanos > 0 {
        let down = whole.checked_sub(1).ok_or(TarProblem::Number)?;
        return Ok((down, 1_000_000_000 - nanos));
    }
    Ok((whole, nanos))
}

fn wrong<E>(_: E) -> TarProblem {
    TarProblem::Number
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn times_have_fractions_and_may_be_negative() {
        assert_eq!(time(b"12").unwrap(), (12, 0));
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"12.1234567899").unwrap(), (12, 123_456_789));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"-0.5").unwrap(), (-1, 500_000_000));
        for bad in [&b""[..], b"x", b"1.x", b"1e3", b"99999999999999999999"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_value_holds_any_byte() {
        let mut pax = Pax::default();
        pax.read(b"29 SCHILY.xattr.user.a=1\n2\0=3\n30 mtime=1")
            .unwrap_err();
        let mut pax = Pax::default();
        pax.read(b"30 SCHILY.xattr.user.a=1\n2\0=3\n\n11 size=42\n")
            .unwrap_err();
        let mut pax = Pax::default();
        pax.read(b"30 SCHILY.xattr.user.a=1\n2\0=3\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"1\n2\0=3".to_vec())]);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"6 a=bX",
            b"x a=b\n",
            b"6 ab\n",
            b"0 \n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(Pax::default().read(bad).is_err(), "{bad:?}");
        }
        Pax::default().read(b"6 a=b\n").unwrap();
    }
}
