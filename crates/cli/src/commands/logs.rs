//! `nydusbox logs`: what a sandbox's daemon has printed, from the files its supervisor keeps.
//!
//! Reads the files themselves: they are there whoever lives. Following waits for changes of the directory, so a log
//! that is set aside and begun anew is read on.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use clap::Args;
use nydusbox::{DAEMON_LOG, DAEMON_LOG_OLD, SUPERVISOR_LOG, SUPERVISOR_LOG_OLD};
use nydusbox_protocol::SandboxId;
use rustix::fs::inotify;
use serde_json::json;

use super::block_on;
use super::output::{self, OutputArgs, Reader};
use crate::args::StateDirArg;
use crate::control::Presence;
use crate::error::Failure;
use crate::state_dir::StateDir;

/// With --json one object a line: {"line": "…"}.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Sandbox whose log to show
    id: SandboxId,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// The supervisor's own log instead of the daemon's
    #[arg(long)]
    supervisor: bool,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &LogsArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let presence = block_on(async { Ok(Presence::of(state_dir, &args.id).await) })?;
    if matches!(presence, Presence::Absent) {
        return Err(presence.failure(state_dir, &args.id));
    }
    let dir = state_dir.sandbox(&args.id);
    let failed = |e: io::Error| Failure::new(&format!("read the log of sandbox {}", args.id), &e);
    let (old, new) = match args.supervisor {
        true => (SUPERVISOR_LOG_OLD, SUPERVISOR_LOG),
        false => (DAEMON_LOG_OLD, DAEMON_LOG),
    };
    let lives = matches!(presence, Presence::Live(_) | Presence::Busy { .. });
    // Watched before it is read: what comes in between is not missed.
    let watched = match args.follow && lives {
        true => Some(watch(&dir).map_err(failed)?),
        false => None,
    };
    let mut printer = Printer::new(args.output);
    if let Ok(file) = File::open(dir.join(old)) {
        printer.print(&file).map_err(failed)?;
    }
    let mut file = match File::open(dir.join(new)) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(e)),
    };
    if let Some(file) = &file {
        printer.print(file).map_err(failed)?;
    }
    if let Some(fd) = &watched {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = Changes::new(fd, &mut buffer);
        while printer.reader == Reader::Reads {
            let change = next(&mut changes, new).map_err(failed)?;
            if let Some(file) = &file {
                printer.print(file).map_err(failed)?;
            }
            match change {
                Change::Written => {}
                Change::Anew => {
                    file = File::open(dir.join(new)).ok();
                    if let Some(file) = &file {
                        printer.print(file).map_err(failed)?;
                    }
                }
                Change::Gone => break,
            }
        }
    }
    printer.finish().map_err(failed)?;
    match presence {
        // The log was shown; that nobody continues it is said besides.
        Presence::Abandoned { .. } => Err(presence.failure(state_dir, &args.id)),
        Presence::Absent | Presence::Live(_) | Presence::Busy { .. } | Presence::Closed(_) => Ok(()),
    }
}

/// Prints whole lines, whatever bytes they are.
struct Printer {
    output: OutputArgs,
    partial: Vec<u8>,
    reader: Reader,
}

impl Printer {
    fn new(output: OutputArgs) -> Self {
        Self {
            output,
            partial: Vec::new(),
            reader: Reader::Reads,
        }
    }

    /// Prints what is in the file from where it was read to.
    fn print(&mut self, mut file: &File) -> io::Result<()> {
        let mut chunk = vec![0; 64 << 10];
        while self.reader == Reader::Reads {
            let len = file.read(&mut chunk)?;
            if len == 0 {
                break;
            }
            self.partial.extend_from_slice(&chunk[..len]);
            let mut begin = 0;
            while let Some(len) = self.partial[begin..].iter().position(|&b| b == b'\n') {
                let line = self.partial[begin..begin + len].to_vec();
                begin += len + 1;
                self.line(&line)?;
            }
            self.partial.drain(..begin);
        }
        Ok(())
    }

    /// Prints a last line that was never ended.
    fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() { Ok(()) } else { self.line(&rest) }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.reader == Reader::Gone {
            return Ok(());
        }
        let text = String::from_utf8_lossy(line);
        let text = match self.output.json {
            true => json!({"line": text}).to_string(),
            false => text.into_owned(),
        };
        self.reader = output::write_line(&text)?;
        Ok(())
    }
}

/// What has happened to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Written,
    /// It was set aside, and there is a new one.
    Anew,
    Gone,
}

/// Changes in a sandbox's directory. One reader for all: it takes several from the kernel at once.
type Changes<'a> = inotify::Reader<'a, &'a OwnedFd>;

fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let flags = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, dir, flags)?;
    Ok(fd)
}

/// The next change of the file with this name.
fn next(changes: &mut Changes<'_>, name: &str) -> io::Result<Change> {
    loop {
        let event = changes.next()?;
        let flags = event.events();
        if flags.intersects(inotify::ReadFlags::DELETE_SELF | inotify::ReadFlags::IGNORED) {
            return Ok(Change::Gone);
        }
        if event.file_name().is_none_or(|n| n.to_bytes() != name.as_bytes()) {
            continue;
        }
        if flags.contains(inotify::ReadFlags::CREATE) {
            return Ok(Change::Anew);
        }
        return Ok(match flags.contains(inotify::ReadFlags::DELETE) {
            true => Change::Gone,
            false => Change::Written,
        });
    }
}
