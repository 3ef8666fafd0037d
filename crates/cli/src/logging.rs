//! The log: one line an event, to stderr or a file, at a level that can be changed while running.
//!
//! The nydus crates log through `log`; both ways end here. Some of their lines quote a backend's configuration,
//! so user information in URLs is cut out of whatever is written.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nydusbox::BoundedLog;
use nydusbox_fsd::{LogControl, without_userinfo};
use nydusbox_protocol::{LogLevel, SandboxId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PIPE_BUF;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::error::Failure;
use crate::otlp::{self, Traces};

/// The daemon's own output, which the supervisor keeps in a file of its own.
const DAEMON_OUTPUT: &str = "nydusbox::daemon";

/// Starts a supervisor's log, written to whatever file is put into the cell and nowhere before, and the export of its
/// spans.
pub(crate) fn start_supervisors(
    sandbox: &SandboxId,
    level: LogLevel,
    file: Arc<SupervisorLog>,
) -> Result<Traces, Failure> {
    let targets = Targets::new()
        .with_default(filter(level))
        .with_target(DAEMON_OUTPUT, LevelFilter::OFF)
        .with_target(otlp::LIFE, LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(true)
        .with_writer(Output(Mutex::new(Box::new(LateFile(file)))));
    let (spans, traces) = otlp::begin(sandbox);
    tracing_subscriber::registry()
        .with(lines.with_filter(targets))
        .with(spans)
        .try_init()
        .map_err(|e| Failure::new("start logging", &e))?;
    Ok(traces)
}

/// A supervisor's log, which is there later, or never.
pub(crate) type SupervisorLog = OnceLock<Mutex<BoundedLog>>;

/// Its writer.
struct LateFile(Arc<SupervisorLog>);

impl Write for LateFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(file) = self.0.get() {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.append(buf)?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging; the handle changes the level.
pub(crate) fn start(level: LogLevel, file: Option<&Path>) -> Result<LogControl, Failure> {
    let (filter, handle) = reload::Layer::<_, Registry>::new(filter(level));
    let out = Output::open(file)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(true)
        .with_writer(out);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|e| Failure::new("start logging", &e))?;
    Ok(LogControl::new(move |level| {
        if let Err(e) = handle.reload(self::filter(level)) {
            tracing::warn!(error = %e, "log level could not be changed");
        }
    }))
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Where lines go.
struct Output(Mutex<Box<dyn Write + Send>>);

impl Output {
    fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let out: Box<dyn Write + Send> = match file {
            None => Box::new(Unwaiting(io::stderr())),
            Some(path) => {
                let path = with_suffix(path);
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .map_err(|e| Failure::new(&format!("open the log file {}", path.display()), &e))?;
                Box::new(file)
            }
        };
        Ok(Self(Mutex::new(out)))
    }
}

/// A log that is not waited for. Standard error may be a pipe that nobody reads for the time being: the daemon of a
/// supervisor that was killed serves on until it is adopted, and must not stand still because its log is full. Then
/// lines are dropped.
struct Unwaiting<W>(W);

impl<W: Write + AsFd> Write for Unwaiting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        if poll(&mut fds, Some(&Timespec::default())) == Ok(0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // A pipe that is writable has room for so much.
        self.0.write(&buf[..buf.len().min(PIPE_BUF)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// nydusd's rule: a log file without a suffix gets `.log`.
fn with_suffix(path: &Path) -> PathBuf {
    if path.extension().is_some() {
        path.to_owned()
    } else {
        path.with_extension("log")
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            out: self,
            text: Vec::new(),
        }
    }
}

/// One line being written.
struct Line<'a> {
    out: &'a Output,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let mut out = self.out.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written (disk full) must not stop the file system.
        let _ = out.write_all(without_userinfo(&text).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn credentials_in_urls_are_cut_out_of_what_is_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = Output(Mutex::new(Box::new(file.reopen().unwrap())));
        let line = r#"proxy: "http://u:p,w@proxy:3128/x", ping: https://a/b mail me@x"#;
        output.make_writer().write_all(line.as_bytes()).unwrap();
        assert_eq!(
            std::fs::read_to_string(file.path()).unwrap(),
            r#"proxy: "http://proxy:3128/x", ping: https://a/b mail me@x"#
        );
    }

    /// If it waited, this would not end.
    #[test]
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        use std::io::Read;
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Unwaiting(writer);
        let line = [b'x'; 10_000];
        let full = (0..1000).find_map(|_| log.write_all(&line).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        reader.read_exact(&mut [0; 20_000]).unwrap();
        log.write_all(&line).unwrap();
    }

    #[test]
    fn a_file_without_suffix_gets_one() {
        assert_eq!(with_suffix(Path::new("/v/daemon")), Path::new("/v/daemon.log"));
        assert_eq!(with_suffix(Path::new("/v/d.txt")), Path::new("/v/d.txt"));
    }
}
