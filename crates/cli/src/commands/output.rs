//! Standard output: data, as text for people or as JSON for programs. Whoever stops reading ends the command
//! quietly.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use crate::error::{Failure, disarmed};

/// `--json`, the same for every command.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whether there is somebody who reads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Reads,
    Gone,
}

/// Prints a line; a terminal gets no escape sequences.
pub(crate) fn line(text: &str) -> Result<Reader, Failure> {
    write_line(text).map_err(|e| Failure::new("write the output", &e))
}

/// The same for those who have a failure of their own.
pub(crate) fn write_line(text: &str) -> io::Result<Reader> {
    let mut out = io::stdout().lock();
    let text = match out.is_terminal() {
        true => Cow::Owned(disarmed(text)),
        false => Cow::Borrowed(text),
    };
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Reads),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(e),
    }
}

impl OutputArgs {
    /// Prints a value, indented, or the text that says the same.
    pub(crate) fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = match self.json {
            true => serde_json::to_string_pretty(value).map_err(|e| Failure::new("write the output", &e))?,
            false => text(),
        };
        line(&text).map(drop)
    }
}
