//! Starting a machine, and the handles on it: [`Machine`] until it is given a command, [`Vm`] from then on.
//!
//! The process has exactly one owner, `driver.rs`, from the moment it is started; but for a machine that goes on from
//! a template, which has one from the moment it does.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use command_fds::FdMappingCollision;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::accel::{Accel, AccelChoice, KvmFacts, KvmUnusable};
use super::arguments::arguments;
use super::config::VmConfig;
use super::driver::{Driver, Errand, Guest};
use super::event::GuestEvent;
use super::machine_config::{MachineConfig, MachineSpec};
use super::outcome::VmOutcome;
use super::restore::restore;
use super::spawn::{Spawned, memory_file, spawn};
use super::tail;
use crate::initramfs::{self, InitramfsError};
use crate::template::{Description, TemplateDir, Templates};

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
    /// A resource of the host is exhausted: descriptors, memory, random bytes.
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

/// Where a machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It boots.
    Boot,
    /// It boots, and is saved as a template once it has.
    BootToTemplate,
    /// It goes on from a template.
    Template,
}

/// A machine that boots or has booted, and has nothing to do yet. Dropping it kills the VMM.
#[derive(Debug)]
pub struct Machine {
    vm: Vm,
    origin: Origin,
    errand: oneshot::Sender<Errand>,
}

impl Machine {
    /// Starts a machine. `dir` must exist and be this machine's alone; what the guest's console says last is written into
    /// `console` there. With a template
    /// this returns when the guest runs, without one as soon as the process is started. A template that is of no use
    /// is removed, and the machine boots.
    ///
    /// # Errors
    /// [`BootError`] when QEMU was not started. That it ends at once is [`VmOutcome::VmmExited`].
    ///
    /// # Cancel safety
    /// Dropped, it leaves nothing running.
    pub async fn start(config: &MachineConfig, dir: &Path) -> Result<Self, BootError> {
        let spec = config.spec();
        let accel = AccelChoice::choose(spec.accel, &KvmFacts::probe()).map_err(BootError::Kvm)?;
        let archive = initramfs::build(&spec.assets).map_err(BootError::Initramfs)?;
        let saved = Saved::of(spec, accel.accel(), &archive);
        let start = Start {
            spec,
            initramfs: initramfs_file(&archive)?,
            dir,
            accel,
            deadline: Instant::now() + spec.boot_deadline,
        };
        if let Some(saved) = &saved
            && let Some(machine) = start.go_on(saved).await?
        {
            return Ok(machine);
        }
        start.boot(saved)
    }

    /// As [`Vm::pid`].
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vm.pid
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What runs the guest, and why.
    #[must_use]
    pub fn accel(&self) -> &AccelChoice {
        &self.vm.accel
    }

    /// Runs what `config` says, as soon as the guest can. The daemon must already listen on the share's socket.
    #[must_use = "dropping it kills the machine"]
    pub fn run(self, config: &VmConfig, stdio: GuestStdio) -> Vm {
        let errand = Errand {
            config: config.clone(),
            stdio,
        };
        // The driver has ended if the process has; its outcome says so.
        let _ = self.errand.send(errand);
        self.vm
    }

    /// Stops it, and returns when the process is gone.
    pub async fn kill(mut self) {
        let _ = self.vm.kill().await;
    }
}

/// Templates of such a machine.
struct Saved {
    dir: TemplateDir,
    description: Description,
}

impl Saved {
    fn of(spec: &MachineSpec, accel: Accel, initramfs: &[u8]) -> Option<Self> {
        let dir = match (&spec.templates, accel) {
            (Templates::Never, _) | (Templates::WhenEmulated(_), Accel::Kvm) => return None,
            (Templates::WhenEmulated(dir), Accel::Tcg) | (Templates::Always(dir), _) => dir,
        };
        // But for the name, which is each machine's own.
        let arguments: Vec<String> = arguments(spec, accel, "machine".as_ref(), false)
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        let kernel = spec.assets.kernel().image();
        match Description::new(&spec.qemu, &arguments, kernel, initramfs, spec.memory_bytes) {
            Ok(description) => Some(Self {
                dir: TemplateDir::new(dir),
                description,
            }),
            // If QEMU or the kernel isn't there, that will be said by who needs it more.
            Err(error) => {
                tracing::debug!(%error, "templates can't be used");
                None
            }
        }
    }
}

/// What is common to both ways.
struct Start<'a> {
    spec: &'a MachineSpec,
    initramfs: File,
    dir: &'a Path,
    accel: AccelChoice,
    deadline: Instant,
}

impl Start<'_> {
    /// Goes on from the template, if there is one that is of use.
    async fn go_on(&self, saved: &Saved) -> Result<Option<Machine>, BootError> {
        let (dir, description) = (saved.dir.clone(), saved.description.clone());
        let found = tokio::task::spawn_blocking(move || dir.find(&description)).await;
        let Some(template) = found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        else {
            return Ok(None);
        };
        let template = Arc::new(template);
        let mut spawned = self.spawn(Some(template.first_byte()))?;
        let failure = match timeout_at(self.deadline, restore(&mut spawned, &template)).await {
            Ok(Ok(())) => {
                let guest = Guest::GoesOn(template);
                return Ok(Some(self.machine(spawned, guest, Origin::Template)?));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        let _ = spawned.child.start_kill();
        let log = match spawned.child.stderr.take() {
            Some(log) => tail::of_stream(log).await,
            None => Vec::new(),
        };
        let status = spawned.child.wait().await;
        tracing::warn!(%failure, ?status, vmm = ?log, "a machine did not go on from its template; it boots");
        template.discard();
        Ok(None)
    }

    fn boot(&self, saved: Option<Saved>) -> Result<Machine, BootError> {
        let slot = saved.and_then(|saved| match saved.dir.save(&saved.description) {
            Ok(slot) => slot,
            Err(error) => {
                tracing::warn!(%error, "there will be no template");
                None
            }
        });
        let origin = match slot {
            Some(_) => Origin::BootToTemplate,
            None => Origin::Boot,
        };
        self.machine(self.spawn(None)?, Guest::Boots(slot), origin)
    }

    fn spawn(&self, goes_on: Option<u8>) -> Result<Spawned, BootError> {
        spawn(self.spec, self.accel.accel(), &self.initramfs, self.dir, goes_on)
    }

    fn machine(&self, spawned: Spawned, guest: Guest, origin: Origin) -> Result<Machine, BootError> {
        let marker = random_marker().map_err(|source| BootError::Resource {
            what: "an end marker",
            source,
        })?;
        let pid = spawned
            .child
            .id()
            .expect("a child that was not waited for has a pid");
        tracing::info!(pid, accel = ?self.accel, ?origin, "machine started");
        let (events_out, events) = watch::channel(Vec::new());
        let (stop, stop_requests) = mpsc::channel(1);
        let (errand, errand_in) = oneshot::channel();
        let driver = Driver::new(
            spawned,
            guest,
            marker,
            self.dir.join("console"),
            self.spec.boot_deadline,
            events_out,
            stop_requests,
            errand_in,
        );
        Ok(Machine {
            vm: Vm {
                pid,
                accel: self.accel.clone(),
                events,
                stop,
                task: tokio::spawn(driver.run()),
                outcome: None,
            },
            origin,
            errand,
        })
    }
}

fn initramfs_file(archive: &[u8]) -> Result<File, BootError> {
    let written = memory_file("nydusbox-initramfs").and_then(|mut file| {
        file.write_all(archive)?;
        Ok(file)
    });
    written.map_err(|source| BootError::Resource {
        what: "the initramfs' file",
        source,
    })
}

/// A machine that has a command. Dropping it kills the VMM.
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

    /// The events so far, in order, but not more of them than a guest needs; `changed()` waits for the next. The channel closes when the machine has ended.
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

/// 32 hexadecimal digits nobody can guess: no output contains them by chance or on purpose.
fn random_marker() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
