//! The daemon under test as a process: started, waited for, stopped, and never left behind.
//!
//! Readiness is a race between the API answering, the child exiting and a deadline. Output goes to a
//! file, so that a failing test can show it and a full pipe can block nobody.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::http::{self, Response};

/// Which daemon to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Ours.
    Nydusbox(PathBuf),
    /// The genuine one, which most behaviours are compared with.
    Nydusd(PathBuf),
}

impl Program {
    /// The executable.
    pub fn path(&self) -> &Path {
        match self {
            Self::Nydusbox(path) | Self::Nydusd(path) => path,
        }
    }

    /// Whether it is our daemon.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Nydusbox(_))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nydusbox(_) => "nydusbox",
            Self::Nydusd(_) => "nydusd",
        })
    }
}

/// Why a daemon did not come up, or did not stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// It could not be started at all.
    #[error("start {}", program.display())]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// What exec said.
        #[source]
        source: io::Error,
    },
    /// It exited before its API answered.
    #[error("the daemon ended with {status} before it answered; its output:\n{output}")]
    Exited {
        /// How.
        status: ExitStatus,
        /// All it wrote.
        output: String,
    },
    /// It was not ready, or not gone, in time.
    #[error("the daemon did not {what} within {after:?}; its output:\n{output}")]
    TimedOut {
        /// What it should have done.
        what: &'static str,
        /// The time it had.
        after: Duration,
        /// All it wrote.
        output: String,
    },
    /// A system call on our side failed.
    #[error("{what}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its errno.
        #[source]
        source: io::Error,
    },
}

/// How a stopped daemon ended.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Stopped {
    /// Its exit status.
    pub status: ExitStatus,
    /// From the signal to the end of the process.
    pub took: Duration,
}

/// A running daemon; killed and reaped when dropped.
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    pidfd: rustix::fd::OwnedFd,
    dir: PathBuf,
    reaped: bool,
}

/// How long a daemon may take to answer.
const START: Duration = Duration::from_secs(20);

impl DaemonProcess {
    /// Starts `PROGRAM virtiofs` with its sockets in `dir` and waits until its API answers.
    ///
    /// # Errors
    /// [`DaemonError::Exited`] with its output if it ends first, [`DaemonError::TimedOut`].
    pub fn spawn(program: &Program, dir: &Path, extra_args: &[&str]) -> Result<Self, DaemonError> {
        let os = |what| move |source| DaemonError::Os { what, source };
        let log = File::create(dir.join("daemon.log")).map_err(os("create the log"))?;
        let err = log.try_clone().map_err(os("dup"))?;
        let child = Command::new(program.path())
            .arg("virtiofs")
            .arg("--sock")
            .arg(dir.join("vhost.sock"))
            .arg("--apisock")
            .arg(dir.join("api.sock"))
            .args(["--log-level", "info", "--rlimit-nofile", "0"])
            .args(extra_args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(err)
            .spawn()
            .map_err(|source| DaemonError::Spawn {
                program: program.path().to_owned(),
                source,
            })?;
        let pidfd =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|e| DaemonError::Os {
                what: "pidfd_open",
                source: e.into(),
            })?;
        let mut daemon = Self {
            child,
            pidfd,
            dir: dir.to_owned(),
            reaped: false,
        };
        daemon.await_answer()?;
        Ok(daemon)
    }

    fn await_answer(&mut self) -> Result<(), DaemonError> {
        let end = Instant::now() + START;
        loop {
            // The vhost-user socket is there before the API answers, in both programs.
            if self
                .api("GET", "/api/v1/daemon", None)
                .is_ok_and(|r| r.status == 200)
            {
                return Ok(());
            }
            // The child's end wakes us at once; the span only paces the question above.
            if self.await_end(Duration::from_millis(2))? {
                let status = self.reap()?;
                return Err(DaemonError::Exited {
                    status,
                    output: self.output(),
                });
            }
            if Instant::now() > end {
                return Err(DaemonError::TimedOut {
                    what: "answer",
                    after: START,
                    output: self.output(),
                });
            }
        }
    }

    /// Waits for the process to end; whether it did.
    fn await_end(&self, patience: Duration) -> Result<bool, DaemonError> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            });
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(DaemonError::Os {
                        what: "poll",
                        source: e.into(),
                    });
                }
            }
        }
    }

    fn reap(&mut self) -> Result<ExitStatus, DaemonError> {
        let status = self
            .child
            .wait()
            .map_err(|source| DaemonError::Os { what: "wait", source })?;
        self.reaped = true;
        Ok(status)
    }

    /// The vhost-user socket.
    pub fn vhost_socket(&self) -> PathBuf {
        self.dir.join("vhost.sock")
    }

    /// The API socket.
    pub fn api_socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// The process id, for /proc.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(self.dir.join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One call of its API.
    ///
    /// # Errors
    /// As [`http::request`].
    pub fn api(&self, method: &str, path_and_query: &str, body: Option<&str>) -> io::Result<Response> {
        http::request(&self.api_socket(), method, path_and_query, body)
    }

    /// `POST /api/v1/mount`; `body` as made by [`crate::image::mount_body`].
    ///
    /// # Errors
    /// As [`http::request`].
    pub fn mount(&self, mountpoint: &str, body: &str) -> io::Result<Response> {
        let at = http::percent_encode(mountpoint);
        self.api("POST", &format!("/api/v1/mount?mountpoint={at}"), Some(body))
    }

    /// `DELETE /api/v1/mount`.
    ///
    /// # Errors
    /// As [`http::request`].
    pub fn umount(&self, mountpoint: &str) -> io::Result<Response> {
        let at = http::percent_encode(mountpoint);
        self.api("DELETE", &format!("/api/v1/mount?mountpoint={at}"), None)
    }

    /// Whether the process runs.
    pub fn is_alive(&self) -> bool {
        !self.reaped && self.await_end(Duration::ZERO).is_ok_and(|ended| !ended)
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// What reading /proc said.
    pub fn open_fds(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// The most memory it has had at once, in bytes.
    ///
    /// # Errors
    /// What reading /proc said.
    pub fn peak_memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// How many threads it has.
    ///
    /// # Errors
    /// What reading /proc said.
    pub fn threads(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.pid()))?.count())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// [`DaemonError::TimedOut`] if it has not ended after `patience`; it is then killed.
    pub fn stop(mut self, patience: Duration) -> Result<Stopped, DaemonError> {
        let start = Instant::now();
        pidfd_send_signal(&self.pidfd, Signal::TERM).map_err(|e| DaemonError::Os {
            what: "pidfd_send_signal",
            source: e.into(),
        })?;
        self.await_stop(start, patience)
    }

    /// `PUT /api/v1/daemon/exit`, then waits for the end.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn stop_by_api(mut self, patience: Duration) -> Result<Stopped, DaemonError> {
        let start = Instant::now();
        self.api("PUT", "/api/v1/daemon/exit", None)
            .map_err(|source| DaemonError::Os {
                what: "PUT /api/v1/daemon/exit",
                source,
            })?;
        self.await_stop(start, patience)
    }

    fn await_stop(&mut self, start: Instant, patience: Duration) -> Result<Stopped, DaemonError> {
        if !self.await_end(patience)? {
            return Err(DaemonError::TimedOut {
                what: "stop",
                after: patience,
                output: self.output(),
            });
        }
        let took = start.elapsed();
        Ok(Stopped {
            status: self.reap()?,
            took,
        })
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        if !self.reaped {
            // It may have ended by itself; then there is nothing to kill, and wait still reaps it.
            let _ended = self.child.kill();
            let _status = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- output of the daemon ---\n{}", self.output());
        }
    }
}
