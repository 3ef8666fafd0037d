//! A line of a daemon's log taken apart: level, where it comes from, what it says.
//!
//! Pure. Two layouts are known, nydusd's (`[time] LEVEL message`, with `[file:line]` before the message above INFO
//! and below) and the embedded daemon's (`time LEVEL target: message`). What has neither layout is a line of
//! something that does not log, such as a panic.

use tracing::Level;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) level: Level,
    /// A module or a source line of the daemon; empty when it does not say.
    pub(super) origin: &'a str,
    pub(super) message: &'a str,
}

/// Takes a line apart; it has no colours any more.
pub(super) fn parse(line: &str) -> Line<'_> {
    nydusd(line).or_else(|| ours(line)).unwrap_or(Line {
        level: match line {
            line if line.contains("panicked at")
                || line.starts_with("Error: ")
                || line.starts_with("error: ") =>
            {
                Level::ERROR
            }
            _ => Level::INFO,
        },
        origin: "",
        message: line,
    })
}

fn nydusd(line: &str) -> Option<Line<'_>> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
    time.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    let (level, rest) = rest.split_once(' ')?;
    let level = self::level(level)?;
    let (origin, message) = match rest.strip_prefix('[').and_then(|r| r.split_once("] ")) {
        Some((origin, message)) if !origin.contains(' ') => (origin, message),
        _ => ("", rest),
    };
    Some(Line {
        level,
        origin,
        message,
    })
}

fn ours(line: &str) -> Option<Line<'_>> {
    let (time, rest) = line.split_once(' ')?;
    time.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    let (level, rest) = rest.trim_start().split_once(' ')?;
    let level = self::level(level)?;
    let (origin, message) = match rest.split_once(": ") {
        Some((origin, message)) if !origin.contains(' ') => (origin, message),
        _ => ("", rest),
    };
    Some(Line {
        level,
        origin,
        message,
    })
}

fn level(word: &str) -> Option<Level> {
    Some(match word {
        "ERROR" => Level::ERROR,
        "WARN" => Level::WARN,
        "INFO" => Level::INFO,
        "DEBUG" => Level::DEBUG,
        "TRACE" => Level::TRACE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_layouts_are_understood_and_other_lines_are_kept_whole() {
        for (line, level, origin, message) in [
            (
                "[2026-11-24 11:56:54.208134 +00:00] INFO http server started",
                Level::INFO,
                "",
                "http server started",
            ),
            (
                "[2026-11-24 11:56:54.208034 +00:00] TRACE [/mio-0.8.5/src/poll.rs:532] registering event source",
                Level::TRACE,
                "/mio-0.8.5/src/poll.rs:532",
                "registering event source",
            ),
            (
                "[2026-11-24 11:56:54.208034 +00:00] ERROR [storage/src/cache.rs:9] read: [1, 2] bad",
                Level::ERROR,
                "storage/src/cache.rs:9",
                "read: [1, 2] bad",
            ),
            (
                "2026-11-24T11:56:54.207599Z  WARN nydusbox_fsd::control: slow: 3 s",
                Level::WARN,
                "nydusbox_fsd::control",
                "slow: 3 s",
            ),
            (
                "2026-11-24T11:56:54.207599Z ERROR a message: without a target",
                Level::ERROR,
                "",
                "a message: without a target",
            ),
            (
                "thread 'main' panicked at src/main.rs:1:1:",
                Level::ERROR,
                "",
                "thread 'main' panicked at src/main.rs:1:1:",
            ),
            ("Error: Os { code: 1 }", Level::ERROR, "", "Error: Os { code: 1 }"),
            ("anything else", Level::INFO, "", "anything else"),
            (
                "[note] INFO is no time",
                Level::INFO,
                "",
                "[note] INFO is no time",
            ),
            ("", Level::INFO, "", ""),
        ] {
            let expected = Line {
                level,
                origin,
                message,
            };
            assert_eq!(parse(line), expected);
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in ".{0,80}") {
            prop_assert!(line.ends_with(parse(&line).message));
        }
    }
}
