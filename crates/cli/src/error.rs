//! How a command ends when it fails: a sentence for people and an exit code for programs.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | success |
//! | 1 | the command failed; the reason is on stderr |
//! | 2 | the command line is wrong |
//! | 125 | `run`: nydusbox failed before or after the guest's command |
//! | other | `run`: the exit status of the guest's command (126, 127 and 128+n as in a shell) |

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

/// A failure on its way to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    hint: Option<String>,
}

/// The code for failures of nydusbox itself in every command but `run`.
pub(crate) const FAILED: u8 = 1;
/// The code for failures of nydusbox itself in `run`, whose other codes belong to the guest.
pub(crate) const RUN_FAILED: u8 = 125;

impl Failure {
    /// "failed to `what`", followed by the chain of causes, each once.
    pub(crate) fn new(what: &str, cause: &(dyn Error + 'static)) -> Self {
        let mut sentence = format!("failed to {what}");
        let mut next = Some(cause);
        let mut last = String::new();
        while let Some(error) = next {
            let text = error.to_string();
            // A transparent error has the text of its source.
            if text != last {
                let _ = write!(sentence, ": {text}");
            }
            last = text;
            next = error.source();
        }
        Self { sentence, hint: None }
    }

    /// A failure without a cause of another kind.
    pub(crate) fn plain(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            hint: None,
        }
    }

    /// Adds what the user can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self, code: u8) -> ExitCode {
        eprintln!("error: {}", self.sentence);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(code)
    }
}
