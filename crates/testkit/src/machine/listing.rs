//! What a program sees of a directory tree, as text: the same program lists it on this host and in a guest.
//!
//! `listing.pl` is the program; perl is in every Debian system.

use std::path::Path;
use std::process::Command;

/// The program, for perl's standard input; it takes the directory as its argument.
pub const PROGRAM: &str = include_str!("listing.pl");

/// The lines for a directory on this host.
///
/// # Panics
/// If it cannot be listed.
pub fn of(root: &Path) -> String {
    let output = Command::new("perl")
        .args(["-e", PROGRAM])
        .arg(root)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Compares two listings, line by line.
///
/// # Panics
/// If they differ, with the first lines that do: whole listings are too much to read.
pub fn assert_same(expected: &str, found: &str, of: &str) {
    let (mut left, mut right) = (expected.lines(), found.lines());
    for number in 1.. {
        match (left.next(), right.next()) {
            (None, None) => return,
            (one, other) => assert_eq!(
                one.unwrap_or("(nothing)"),
                other.unwrap_or("(nothing)"),
                "line {number} of {of}"
            ),
        }
    }
}
