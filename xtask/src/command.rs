//! Running other programs: shown as they run, or silently with their output kept.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Tail, TaskError};

/// A program to run, with the words it is spoken of.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command }
    }

    pub(crate) fn cargo() -> Self {
        // What cargo sets for the program it runs; the cargo that runs this program is asked for by name.
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Arguments as one reads them: separated by spaces.
    pub(crate) fn words(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it with its output on the terminal.
    pub(crate) fn shown(self) -> Result<(), TaskError> {
        let text = self.text();
        self.shown_as(&text)
    }

    /// The same, where the command itself would be too much to read.
    pub(crate) fn shown_as(mut self, text: &str) -> Result<(), TaskError> {
        eprintln!("xtask: {text}");
        let status = self.command.status().map_err(|source| self.start_error(source))?;
        if status.success() {
            Ok(())
        } else {
            Err(TaskError::Command {
                command: text.to_owned(),
                status,
                tail: Tail::default(),
            })
        }
    }

    /// Runs it with its standard output passed on to `to` as it comes. How long the first of it took; all of it, if
    /// there was none.
    pub(crate) fn streamed(mut self, text: &str, to: &mut dyn Write) -> Result<Duration, TaskError> {
        eprintln!("xtask: {text}");
        let since = Instant::now();
        self.command.stdout(Stdio::piped());
        let mut child = self.command.spawn().map_err(|source| self.start_error(source))?;
        let mut first = None;
        let passed = child.stdout.take().map_or(Ok(()), |stdout| {
            pass_on(stdout, to, || first = first.or(Some(since.elapsed())))
        });
        // Also if nobody takes its output: a process that is not waited for has no owner.
        let status = child.wait().map_err(|source| self.start_error(source))?;
        passed.map_err(|source| TaskError::Output { source })?;
        if !status.success() {
            return Err(TaskError::Command {
                command: text.to_owned(),
                status,
                tail: Tail::default(),
            });
        }
        Ok(first.unwrap_or_else(|| since.elapsed()))
    }

    /// Runs it silently; its standard output. What it wrote is shown only if it fails.
    pub(crate) fn output(mut self) -> Result<String, TaskError> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command.output().map_err(|source| self.start_error(source))?;
        if status.success() {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        } else {
            let written = if stderr.is_empty() { stdout } else { stderr };
            Err(TaskError::Command {
                command: self.text(),
                status,
                tail: Tail::of(&written),
            })
        }
    }

    /// Whether it can be run and succeeds; nothing is shown.
    pub(crate) fn succeeds(mut self) -> bool {
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        self.command.status().is_ok_and(|status| status.success())
    }

    fn start_error(&self, source: io::Error) -> TaskError {
        TaskError::Start {
            command: self.text(),
            source,
        }
    }

    fn text(&self) -> String {
        let program = Path::new(self.command.get_program());
        // Which cargo it is, is nobody's question.
        let program = program.file_name().unwrap_or(program.as_os_str());
        let words = std::iter::once(program).chain(self.command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

fn pass_on(mut from: ChildStdout, to: &mut dyn Write, mut some_came: impl FnMut()) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        some_came();
        to.write_all(&buffer[..length])?;
        to.flush()?;
    }
}
