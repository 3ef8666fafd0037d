//! Starting a machine, and the handle on it.
//!
//! [`Vm::boot`] writes the initramfs, makes the ports' sockets, starts QEMU and hands everything to the driver's
//! task. From then on the process has exactly one owner, `driver.rs`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::accel::{AccelChoice, KvmFacts, KvmUnusable};
use super::arguments::{FIRST_PORT_FD, PORTS, arguments};
use super::config::VmConfig;
use super::driver::Driver;
use super::event::GuestEvent;
use super::outcome::VmOutcome;
use crate::initramfs::{self, InitramfsError, params};

/// Why a machine was not started. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// KVM was demanded and can't be used.
    #[error("KVM cannot be used")]
    Kvm(#[source] KvmUnusable),
    /// The initramfs can't be built.
    #[error("cannot build the initramfs")]
    Initramfs(#[source] InitramfsError),
    /// A file can't be written in the machine's directory.
    #[error("cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A resource of the host is exhausted: descriptors, random bytes.
    #[error("cannot make {what}")]
    Resource {
        /// What was to be made.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two descriptors were to be passed at one number.
    #[error("cannot pass the ports' sockets")]
    Descriptors(#[source] FdMappingCollision),
    /// QEMU's program doesn't start.
    #[error("cannot start {program:?}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why; "not found" where QEMU is not installed.
        #[source]
        source: io::Error,
    },
}

/// The command's three streams on the host.
pub struct GuestStdio {
    /// Read until its end, which the command then sees.
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// Takes the command's output.
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// Takes the command's errors.
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for GuestStdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestStdio")
    }
}

impl GuestStdio {
    /// No input, these two for output.
    #[must_use]
    pub fn output(
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            stdin: Box::new(tokio::io::empty()),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
        }
    }
}

/// A running machine. Dropping it kills the VMM.
#[derive(Debug)]
pub struct Vm {
    pid: u32,
    accel: AccelChoice,
    events: watch::Receiver<Vec<GuestEvent>>,
    stop: mpsc::Sender<()>,
    task: JoinHandle<VmOutcome>,
    outcome: Option<VmOutcome>,
}

impl Vm {
    /// Starts a machine. `dir` must exist and be this machine's alone; `initramfs` and `console` are written into it.
    /// The daemon must already listen on the share's socket.
    ///
    /// # Errors
    /// [`BootError`] when QEMU was not started. That it ends at once is [`VmOutcome::VmmExited`].
    pub async fn boot(config: &VmConfig, dir: &Path, stdio: GuestStdio) -> Result<Self, BootError> {
        let spec = config.spec();
        let accel = AccelChoice::choose(spec.accel, &KvmFacts::probe()).map_err(BootError::Kvm)?;
        let marker = random_marker().map_err(|source| BootError::Resource {
            what: "an end marker",
            source,
        })?;
        let (initramfs, console) = (dir.join("initramfs"), dir.join("console"));
        let archive =
            initramfs::build(&spec.assets, &params::write(spec, &marker)).map_err(BootError::Initramfs)?;
        tokio::fs::write(&initramfs, archive)
            .await
            .map_err(|source| BootError::Write {
                path: initramfs.clone(),
                source,
            })?;

        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for (child_fd, _) in (FIRST_PORT_FD..).zip(PORTS) {
            let (our_end, parent_fd) = socket_pair().map_err(|source| BootError::Resource {
                what: "a port's sockets",
                source,
            })?;
            ours.push(our_end);
            theirs.push(FdMapping { parent_fd, child_fd });
        }
        let ports: [UnixStream; PORTS.len()] = ours.try_into().expect("one socket was made for each port");

        let mut command = Command::new(&spec.qemu);
        command
            .args(arguments(config, accel.accel(), &initramfs, &console))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own group: a Ctrl-C at the terminal is ours to act on, in our order.
            .process_group(0)
            .kill_on_drop(true)
            .fd_mappings(theirs)
            .map_err(BootError::Descriptors)?;
        let child = command.spawn().map_err(|source| BootError::Spawn {
            program: spec.qemu.clone(),
            source,
        })?;
        // The child's ends live in the command; while we hold them, no port would ever show QEMU's end.
        drop(command);

        let pid = child.id().expect("a child that was not waited for has a pid");
        tracing::info!(pid, accel = ?accel, "machine started");
        let (events_out, events) = watch::channel(Vec::new());
        let (stop, stop_requests) = mpsc::channel(1);
        let driver = Driver::new(
            child,
            ports,
            stdio,
            &marker,
            console,
            spec.boot_deadline,
            events_out,
            stop_requests,
        );
        Ok(Self {
            pid,
            accel,
            events,
            stop,
            task: tokio::spawn(driver.run()),
            outcome: None,
        })
    }

    /// The VMM's process id, for logs: it may be reused once the machine has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What runs the guest, and why.
    #[must_use]
    pub fn accel(&self) -> &AccelChoice {
        &self.accel
    }

    /// All events so far, in order; `changed()` waits for the next. The channel closes when the machine has ended.
    #[must_use]
    pub fn events(&self) -> watch::Receiver<Vec<GuestEvent>> {
        self.events.clone()
    }

    /// Waits until the machine has ended and its process is reaped. May be called again; the outcome stays.
    ///
    /// # Cancel safety
    /// Safe: a wait that was dropped can be started again.
    pub async fn wait(&mut self) -> VmOutcome {
        if let Some(outcome) = &self.outcome {
            return outcome.clone();
        }
        let outcome = match (&mut self.task).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Only a runtime that is shutting down cancels the task; that drops and kills the child.
            Err(_) => VmOutcome::Killed,
        };
        self.outcome.insert(outcome).clone()
    }

    /// Stops the machine: SIGTERM, then after a second SIGKILL; returns when the process is gone. A machine that had
    /// already ended keeps its outcome.
    ///
    /// # Cancel safety
    /// Safe: the stop goes on, and [`Self::wait`] shows its end.
    pub async fn kill(&mut self) -> VmOutcome {
        // A full channel means that a stop is already under way, a closed one that the machine has ended.
        let _ = self.stop.try_send(());
        self.wait().await
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Ends the driver, and with it the child (`kill_on_drop`).
        self.task.abort();
    }
}

/// Our end, and QEMU's as a blocking descriptor.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// 32 hexadecimal digits nobody can guess: no output contains them by chance or on purpose.
fn random_marker() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
