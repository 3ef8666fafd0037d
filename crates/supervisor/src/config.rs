//! What a caller asks for: one sandbox, valid by construction.
//!
//! Owns defaults and the checks that need no running daemon; paths of sockets are computed and length-checked
//! here so that nothing later can find them too long. Next: [`crate::launch`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox_protocol::{LogLevel, SandboxId, ShareConfig, SocketPath, SocketPathError};
use rustix::fs::{Mode, OFlags};

use crate::environment::{Environment, Limits, Netns, OnSupervisorDeath};
use crate::program::{Program, ProgramKind};
use crate::recovery::OnExit;
use crate::secrets::Secrets;
use crate::state::{Settings, StateDocument, millis};

/// Where sandboxes keep their directories unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/run/nydusbox";
/// How long a start may take in all.
pub const DEFAULT_START_DEADLINE: Duration = Duration::from_secs(10);
/// How long one call to the daemon may take, headers and body.
pub const DEFAULT_CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How often a sandbox's health is observed: a few requests on a connection of its own.
pub const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How long the daemon may take to end after SIGTERM before it is killed.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(5);

/// Why a sandbox cannot be configured like that.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// State directory and sandbox id make a socket path that cannot be bound.
    #[error("place the sockets of sandbox {sandbox} in {state_dir:?}")]
    Socket {
        /// The sandbox.
        sandbox: SandboxId,
        /// The state directory asked for.
        state_dir: PathBuf,
        /// The rule that is broken, with the path and its length.
        #[source]
        source: SocketPathError,
    },
    /// The state directory cannot be made absolute.
    #[error("find the state directory {path:?}")]
    StateDir {
        /// The path as given.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The directory to share is missing, unreadable or no directory.
    #[error("share the directory {path:?}")]
    Share {
        /// The path as given.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The API carries paths as text.
    #[error("share the directory {path:?}: its name is not UTF-8")]
    ShareNotUtf8 {
        /// The path as given.
        path: PathBuf,
    },
    /// A stock nydusd would ignore it.
    #[error("configure the share: {program:?} is a stock nydusd, which cannot")]
    ShareConfigUnsupported {
        /// The program.
        program: PathBuf,
    },
}

/// The configuration of one sandbox.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    id: SandboxId,
    dir: PathBuf,
    vhost_socket: SocketPath,
    /// Where a daemon that takes another one's place makes its vhost-user socket, out of the VMM's sight.
    successor_vhost_socket: SocketPath,
    api_socket: SocketPath,
    program: Program,
    share: Option<String>,
    share_config: ShareConfig,
    log_level: LogLevel,
    start_deadline: Duration,
    call_deadline: Duration,
    stop_grace: Duration,
    environment: Environment,
    on_exit: OnExit,
    health_interval: Option<Duration>,
    secrets: Secrets,
}

impl SandboxConfig {
    /// A sandbox without a share, kept in `<state_dir>/<id>/`.
    ///
    /// # Errors
    /// [`ConfigError::Socket`] when the sockets' paths would be longer than a unix socket's may be;
    /// [`ConfigError::StateDir`] when the directory's path cannot be made absolute.
    pub fn new(id: SandboxId, state_dir: impl AsRef<Path>, program: Program) -> Result<Self, ConfigError> {
        let state_dir = state_dir.as_ref();
        let dir = std::path::absolute(state_dir)
            .map_err(|source| ConfigError::StateDir {
                path: state_dir.to_owned(),
                source,
            })?
            .join(id.as_str());
        let socket = |name| {
            SocketPath::new(dir.join(name)).map_err(|source| ConfigError::Socket {
                sandbox: id.clone(),
                state_dir: state_dir.to_owned(),
                source,
            })
        };
        let secrets = Secrets::default();
        for (name, value) in program.env() {
            // The one credential nydusd takes from its environment.
            if let Some(auth) = value.to_str().filter(|_| name == "IMAGE_PULL_AUTH") {
                secrets.learn(auth);
            }
        }
        Ok(Self {
            vhost_socket: socket(crate::dir::VHOST_SOCKET)?,
            successor_vhost_socket: socket(crate::dir::VHOST_SUCCESSOR)?,
            api_socket: socket(crate::dir::API_SOCKET)?,
            dir,
            id,
            program,
            share: None,
            share_config: ShareConfig::default(),
            log_level: LogLevel::Info,
            start_deadline: DEFAULT_START_DEADLINE,
            call_deadline: DEFAULT_CALL_DEADLINE,
            stop_grace: DEFAULT_STOP_GRACE,
            environment: Environment::default(),
            on_exit: OnExit::default(),
            health_interval: Some(DEFAULT_HEALTH_INTERVAL),
            secrets,
        })
    }

    /// The configuration a supervisor that is gone has written down.
    pub(crate) fn recorded(state_dir: &Path, document: &StateDocument) -> Result<Self, ConfigError> {
        let program = Program::recorded(&document.program);
        let Settings {
            share,
            log_level,
            start_deadline_ms,
            call_deadline_ms,
            stop_grace_ms,
            environment,
            on_exit,
            health_interval_ms,
        } = document.settings.clone();
        let plain = Self::new(document.sandbox.clone(), state_dir, program)?;
        for mount in &document.mounts {
            for command in std::iter::once(&mount.command).chain(&mount.replacements) {
                plain.secrets.learn_config(&command.config);
            }
        }
        Ok(Self {
            share,
            log_level,
            start_deadline: Duration::from_millis(start_deadline_ms),
            call_deadline: Duration::from_millis(call_deadline_ms),
            stop_grace: Duration::from_millis(stop_grace_ms),
            environment,
            on_exit,
            health_interval: health_interval_ms.map(Duration::from_millis),
            ..plain
        })
    }

    /// What of it is written down. Every field is either here or follows from those that are.
    pub(crate) fn settings(&self) -> Settings {
        let Self {
            id: _,
            dir: _,
            vhost_socket: _,
            successor_vhost_socket: _,
            api_socket: _,
            program: _,
            share,
            // It stands with the mount.
            share_config: _,
            log_level,
            start_deadline,
            call_deadline,
            stop_grace,
            environment,
            on_exit,
            health_interval,
            secrets: _,
        } = self;
        Settings {
            share: share.clone(),
            log_level: *log_level,
            start_deadline_ms: millis(*start_deadline),
            call_deadline_ms: millis(*call_deadline),
            stop_grace_ms: millis(*stop_grace),
            environment: environment.clone(),
            on_exit: *on_exit,
            health_interval_ms: health_interval.map(millis),
        }
    }

    /// Shares a host directory with the guest at `/containers`. It is opened here and now, which takes as long as its file
    /// system takes to answer: the start's deadline begins later.
    ///
    /// # Errors
    /// [`ConfigError::Share`] when it cannot be opened for reading as a directory; [`ConfigError::ShareNotUtf8`] when its
    /// path is no text.
    pub fn with_share(mut self, dir: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = dir.as_ref();
        let unusable = |source| ConfigError::Share {
            path: path.to_owned(),
            source,
        };
        let absolute = std::path::absolute(path).map_err(unusable)?;
        rustix::fs::open(
            &absolute,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| unusable(errno.into()))?;
        let text = absolute
            .into_os_string()
            .into_string()
            .map_err(|path| ConfigError::ShareNotUtf8 { path: path.into() })?;
        self.share = Some(text);
        Ok(self)
    }

    /// How the directory is shared. Only our daemon understands it.
    ///
    /// # Errors
    /// [`ConfigError::ShareConfigUnsupported`] when something is asked for and the program is a stock nydusd.
    pub fn with_share_config(mut self, config: ShareConfig) -> Result<Self, ConfigError> {
        if config != ShareConfig::default() && self.program.kind() == ProgramKind::Stock {
            return Err(ConfigError::ShareConfigUnsupported {
                program: self.program.exe().to_owned(),
            });
        }
        self.share_config = config;
        Ok(self)
    }

    /// How much the daemon logs; [`LogLevel::Info`] unless set.
    #[must_use]
    pub fn with_log_level(mut self, level: LogLevel) -> Self {
        self.log_level = level;
        self
    }

    /// How long the start may take in all; [`DEFAULT_START_DEADLINE`] unless set.
    #[must_use]
    pub fn with_start_deadline(mut self, deadline: Duration) -> Self {
        self.start_deadline = deadline;
        self
    }

    /// How long one call to the daemon may take, how long a snapshot's directory is waited for, and how long a request
    /// waits for a daemon that is being replaced; [`DEFAULT_CALL_DEADLINE`] unless set.
    #[must_use]
    pub fn with_call_deadline(mut self, deadline: Duration) -> Self {
        self.call_deadline = deadline;
        self
    }

    /// How long the daemon may take to end by itself when stopped; [`DEFAULT_STOP_GRACE`] unless set.
    #[must_use]
    pub fn with_stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// The network namespace the daemon runs in, from which it reaches registries; that of the caller unless set.
    #[must_use]
    pub fn with_netns(mut self, netns: Netns) -> Self {
        self.environment.netns = netns;
        self
    }

    /// Bounds on the daemon's resources; none unless set.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.environment.limits = limits;
        self
    }

    /// What becomes of the daemon when this process dies; it is killed unless set.
    #[must_use]
    pub fn with_on_supervisor_death(mut self, then: OnSupervisorDeath) -> Self {
        self.environment.on_supervisor_death = then;
        self
    }

    /// What is done when the daemon ends without being asked to; [`OnExit::Stop`] unless set.
    #[must_use]
    pub fn with_on_exit(mut self, on_exit: OnExit) -> Self {
        self.on_exit = on_exit;
        self
    }

    /// What is done when the daemon ends without being asked to.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        self.on_exit
    }

    /// How often health is observed, `None` for never; [`DEFAULT_HEALTH_INTERVAL`] unless set. Each call of a round
    /// may take a second. Where it never is, health stays unknown, and no event tells of our daemon's VMM, of slow
    /// requests or of failed reads.
    #[must_use]
    pub fn with_health_interval(mut self, interval: Option<Duration>) -> Self {
        self.health_interval = interval;
        self
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The sandbox's directory, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The vhost-user socket the VMM connects to.
    #[must_use]
    pub fn vhost_socket(&self) -> &SocketPath {
        &self.vhost_socket
    }

    /// The daemon's API socket.
    #[must_use]
    pub fn api_socket(&self) -> &SocketPath {
        &self.api_socket
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The same for a daemon that takes another one's place.
    pub(crate) fn for_successor(&self) -> Self {
        Self {
            vhost_socket: self.successor_vhost_socket.clone(),
            ..self.clone()
        }
    }

    /// Where that daemon binds its vhost-user socket.
    pub(crate) fn successor_vhost_socket(&self) -> &SocketPath {
        &self.successor_vhost_socket
    }

    /// How much the next daemon logs.
    pub(crate) fn set_log_level(&mut self, level: LogLevel) {
        self.log_level = level;
    }

    pub(crate) fn health_interval(&self) -> Option<Duration> {
        self.health_interval
    }

    /// The credentials given to the sandbox's daemon. Clones of this configuration share them.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    pub(crate) fn share(&self) -> Option<&str> {
        self.share.as_deref()
    }

    pub(crate) fn share_config(&self) -> &ShareConfig {
        &self.share_config
    }

    pub(crate) fn log_level(&self) -> LogLevel {
        self.log_level
    }

    pub(crate) fn start_deadline(&self) -> Duration {
        self.start_deadline
    }

    pub(crate) fn call_deadline(&self) -> Duration {
        self.call_deadline
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        self.stop_grace
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn config(id: &str, state_dir: &str) -> Result<SandboxConfig, ConfigError> {
        SandboxConfig::new(
            SandboxId::new(id).unwrap(),
            state_dir,
            Program::stock("/bin/sh").unwrap(),
        )
    }

    #[test]
    fn sockets_that_cannot_be_bound_are_refused_before_anything_runs() {
        let error = config(&"s".repeat(100), "/run/nydusbox").unwrap_err();
        let ConfigError::Socket {
            source: SocketPathError::TooLong { len, .. },
            ..
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(len, "/run/nydusbox/".len() + 100 + "/vhost.sock".len());
    }

    #[test]
    fn what_is_written_down_is_what_is_configured_again() {
        for interval in [None, Some(Duration::from_millis(1234))] {
            let config = config("s", "/run/nydusbox")
                .unwrap()
                .with_health_interval(interval)
                .with_log_level(LogLevel::Debug)
                .with_stop_grace(Duration::from_secs(7));
            let program = config.program().record();
            let document = StateDocument::new(config.id().clone(), program, config.settings());
            let again = SandboxConfig::recorded(Path::new("/run/nydusbox"), &document).unwrap();
            assert_eq!(again.settings(), config.settings());
            assert_eq!(again.health_interval(), interval);
        }
    }

    #[test]
    fn a_share_must_be_a_readable_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let share = |p: &Path| config("s", "/run/nydusbox").unwrap().with_share(p);
        assert!(matches!(
            share(&dir.path().join("none")),
            Err(ConfigError::Share { .. })
        ));
        assert!(matches!(share(&file), Err(ConfigError::Share { .. })));
        assert_eq!(share(dir.path()).unwrap().share(), dir.path().to_str());
    }
}
