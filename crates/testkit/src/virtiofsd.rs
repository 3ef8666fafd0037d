//! The genuine virtiofsd as a process. It has no API to wait on: it is ready when its socket listens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to listen.
const START: Duration = Duration::from_secs(10);

/// A running virtiofsd; killed and reaped when dropped. It serves one connection and ends.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
    socket: PathBuf,
}

impl Virtiofsd {
    /// Shares `share` on a socket in `dir`, with `extra_args` beyond its defaults.
    ///
    /// # Errors
    /// It cannot be started, or ends or is silent before it listens.
    pub fn spawn(program: &Path, dir: &Path, share: &Path, extra_args: &[&str]) -> io::Result<Self> {
        let socket = dir.join("vhost.sock");
        let child = Command::new(program)
            .arg("--socket-path")
            .arg(&socket)
            .arg("--shared-dir")
            .arg(share)
            .args(["--rlimit-nofile", "0", "--log-level", "warn"])
            .args(extra_args)
            .stdin(Stdio::null())
            .spawn()?;
        let mut daemon = Self { child, socket };
        let end = Instant::now() + START;
        // Connecting to find out would use up the one connection it serves, and the file is there before it can be
        // connected to: the kernel knows.
        while !is_listening(&daemon.socket)? {
            if let Some(status) = daemon.child.try_wait()? {
                return Err(io::Error::other(format!("virtiofsd ended with {status}")));
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
        Ok(daemon)
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id, for /proc.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // It may have ended by itself; wait then still reaps it.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Whether a socket bound to this path listens: `__SO_ACCEPTCON` in the flags of `/proc/net/unix`.
fn is_listening(socket: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string("/proc/net/unix")?.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(3) == Some(&"00010000") && columns.get(7).is_some_and(|path| Path::new(path) == socket)
    }))
}
