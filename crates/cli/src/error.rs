//! How a command ends when it fails: a sentence for people and an exit code for programs.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success |
//! | 1 | the command failed; the reason is on stderr. `image diff`: the images differ |
//! | 2 | the command line is wrong. `image diff`: an image cannot be read, as with diff(1) |
//! | 3 | no such sandbox |
//! | 4 | the sandbox is there, its supervisor is not: `adopt` or `sweep` |
//! | 5 | taken: the sandbox exists already, is starting or stopping, or something else is mounted there |
//! | 125 | `run`: nydusbox failed before or after the guest's command |
//! | 130 | interrupted by Ctrl-C, SIGTERM or SIGHUP; what was begun is undone |
//! | 141 | `run`: whoever read the command's output has left |
//! | other | `run`: the exit status of the guest's command (126, 127 and 128+n as in a shell) |

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use nydusbox::{ExitCause, StartCause, StartError};
use nydusbox_image::registry_error;

use crate::commands::registry;

/// A failure on its way to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    hint: Option<String>,
    code: u8,
}

/// The code for failures of nydusbox itself in every command but `run`.
pub(crate) const FAILED: u8 = 1;
/// The code for failures of nydusbox itself in `run`, whose other codes belong to the guest.
pub(crate) const RUN_FAILED: u8 = 125;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// `image diff` has nothing to compare, as diff(1) says it.
pub(crate) const NO_COMPARISON: u8 = 2;
/// There is no such sandbox.
pub(crate) const NO_SANDBOX: u8 = 3;
/// The sandbox is there, its supervisor is not.
pub(crate) const ABANDONED: u8 = 4;
/// The name or the place is taken.
pub(crate) const TAKEN: u8 = 5;
/// Ctrl-C, SIGTERM or SIGHUP: 128 + SIGINT, as a shell says it.
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    /// "failed to `what`", followed by the chain of causes, each once.
    pub(crate) fn new(what: &str, cause: &(dyn Error + 'static)) -> Self {
        Self::chain(format!("failed to {what}: "), cause)
    }

    /// "failed to" and the error with its causes: for errors that say themselves what was tried.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        Self::chain("failed to ".to_owned(), error)
    }

    fn chain(mut sentence: String, cause: &(dyn Error + 'static)) -> Self {
        let mut last = cause.to_string();
        sentence.push_str(&last);
        let mut next = cause.source();
        while let Some(error) = next {
            let text = error.to_string();
            // A transparent error has the text of its source.
            if text != last {
                let _ = write!(sentence, ": {text}");
            }
            last = text;
            next = error.source();
        }
        Self {
            hint: registry_error(cause).and_then(registry::remedy),
            ..Self::plain(sentence)
        }
    }

    /// A failure without a cause of another kind.
    pub(crate) fn plain(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            hint: None,
            code: FAILED,
        }
    }

    /// A start that failed, with what can be done about it and what the daemon said last.
    pub(crate) fn start(error: &StartError) -> Self {
        let mut hints = Vec::new();
        if let StartCause::Exited(cause) = &*error.cause {
            hints.extend(remedy(*cause).map(str::to_owned));
        }
        if !error.last_lines.is_empty() {
            let lines = error.last_lines.join("\n  ");
            hints.push(format!("the daemon said last:\n  {lines}"));
        }
        let failure = Self::of(error);
        match hints.is_empty() {
            true => failure,
            false => failure.hint(hints.join("\n")),
        }
    }

    /// Adds what the user can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code; [`FAILED`] unless set.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// What went wrong, and what can be done about it.
    pub(crate) fn into_parts(self) -> (String, Option<String>) {
        (self.sentence, self.hint)
    }

    /// Prints it and gives its exit code.
    pub(crate) fn exit(&self) -> ExitCode {
        self.report(self.code)
    }

    /// Prints it and gives this exit code.
    pub(crate) fn report(&self, code: u8) -> ExitCode {
        say(format_args!("error: {}", self.sentence));
        if let Some(hint) = &self.hint {
            say(format_args!("hint: {hint}"));
        }
        ExitCode::from(code)
    }
}

/// What the user can do about a daemon that ended like this.
pub(crate) fn remedy(cause: ExitCause) -> Option<&'static str> {
    match cause {
        ExitCause::Oom => Some("--memory-max of `nydusbox start` is too small for this daemon"),
        ExitCause::Code(_) | ExitCause::Signal(_) | ExitCause::Unknown => None,
    }
}

/// Says something on stderr. That nobody reads it any longer is no reason to stop what is being done.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", disarmed(&text.to_string()));
}

/// Text as a terminal may be given it: names of an image's files and words of a guest can have escape sequences in them.
pub(crate) fn disarmed(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_and_not_sent() {
        let text = "a\u{1b}[31mb\tc\nd\u{7}\u{9b}é";
        assert_eq!(disarmed(text), "a\\u{1b}[31mb\tc\nd\\u{7}\\u{9b}é");
    }
}
