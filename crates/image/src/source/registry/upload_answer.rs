//! What a registry's answers say of a blob that it is sent.
//!
//! Pure. Who acts on it is `upload.rs`.

use super::retry::Retry;

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has what it was sent, or as much of it as it says.
    Taken,
    /// It may be another answer in a moment.
    Moment,
    /// It has something else than was sent, or nothing.
    Lost,
    /// It doesn't take pieces, or not these.
    Whole,
    Refused,
}

/// The answer to a piece (PATCH).
pub(super) fn at_piece(status: u16) -> Verdict {
    match status {
        // 201 is Amazon's.
        200..=202 | 204 => Verdict::Taken,
        // A session that is not known, or known to have something else.
        400 | 404 | 410 | 416 => Verdict::Lost,
        405 | 406 | 409 | 411 | 412 | 415 | 417 | 422 | 501 => Verdict::Whole,
        status if Retry::is_for_the_moment(status) => Verdict::Moment,
        _ => Verdict::Refused,
    }
}

/// The answer to the end of a session (PUT).
pub(super) fn at_end(status: u16) -> Verdict {
    match status {
        200 | 201 | 204 => Verdict::Taken,
        status => match at_piece(status) {
            Verdict::Whole => Verdict::Refused,
            verdict => verdict,
        },
    }
}

/// How many bytes a registry has by a `Range` of `0-LAST`; `None` if it is none. `0-0` is nothing: the reference
/// implementation says so of an empty session, and no piece has one byte.
pub(super) fn reached(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.parse().ok()?;
    match (first, last) {
        ("0", 0) => Some(0),
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_registries_are_read_and_others_are_none() {
        for (range, bytes) in [
            ("0-0", Some(0)),
            ("0-99", Some(100)),
            (" bytes=0-99", Some(100)),
            ("1-99", None),
            ("0-", None),
            ("99", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(reached(range), bytes, "{range}");
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_is_told() {
        for status in [429, 500, 502, 503, 504] {
            assert_eq!(
                (at_piece(status), at_end(status)),
                (Verdict::Moment, Verdict::Moment)
            );
        }
        for status in [401, 403, 413, 418, 507] {
            assert_eq!(
                (at_piece(status), at_end(status)),
                (Verdict::Refused, Verdict::Refused)
            );
        }
        assert_eq!((at_piece(405), at_end(405)), (Verdict::Whole, Verdict::Refused));
        for status in [201, 202] {
            assert_eq!(
                (at_piece(status), at_end(status)),
                (Verdict::Taken, Verdict::Taken)
            );
        }
    }
}
