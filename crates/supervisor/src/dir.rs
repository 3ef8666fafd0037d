//! The sandbox's directory: created, locked, cleared of a dead predecessor's sockets, removed.
//!
//! The lock ([`lock`]) is held from before the first file is made until after the last is gone, so two supervisors can
//! never use one sandbox, nor one take over the other's sockets. A directory that is there is touched only if it is a
//! sandbox's ([`ours`]), or empty and one is to be made in it. Only files with the names below are ever removed, never a
//! directory tree: there could be mounts in it. `drop` removes them too, for a start that is given up.
//! What a predecessor has left outside is undone by [`crate::remains`].

mod lock;
mod look;
mod ours;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::outlet::OUTLET;
use crate::program::ProgramKind;
use crate::remains;
use crate::state::{DAEMON_LOCK, STATE, STATE_NEW, StateError, is_dead};
use lock::Attempt;
pub use lock::owner as lock_owner;
pub use look::LookedAt;

/// File names inside a sandbox's directory.
pub(crate) const VHOST_SOCKET: &str = "vhost.sock";
/// Shorter than the name it gets in the end, so that its path is never the one that is too long.
pub(crate) const VHOST_SUCCESSOR: &str = "vhost.new";
pub(crate) const API_SOCKET: &str = "api.sock";
/// The file that takes what the daemon prints.
pub const LOG: &str = "daemon.log";
/// Its predecessor, once it has grown too large.
pub const LOG_OLD: &str = "daemon.log.old";
/// The file whose lock says that a sandbox has an owner; [`lock_owner`] reads which.
pub const LOCK: &str = "lock";
/// The socket of the process that owns the sandbox, where it is a program of its own. Made by that program.
pub const CONTROL_SOCKET: &str = "control.sock";
/// That program's own log.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// Its predecessor, once it has grown too large.
pub const SUPERVISOR_LOG_OLD: &str = "supervisor.log.old";

/// The certificates that its daemon trusts, where that program has it trust others than the system's.
pub const CERTIFICATES: &str = "ca.pem";
/// The same while it is written.
pub const CERTIFICATES_NEW: &str = "ca.new";

/// In the order in which they are removed: what the document promises goes before the document.
const FILES: [&str; 14] = [
    VHOST_SOCKET,
    VHOST_SUCCESSOR,
    API_SOCKET,
    CONTROL_SOCKET,
    OUTLET,
    LOG,
    LOG_OLD,
    SUPERVISOR_LOG,
    SUPERVISOR_LOG_OLD,
    CERTIFICATES_NEW,
    CERTIFICATES,
    STATE_NEW,
    STATE,
    DAEMON_LOCK,
];
/// A directory with nothing in it.
const NOTHING: &str = "nothing";

/// How often the lock is tried while predecessors remove the directory under our hands.
const LOCK_ATTEMPTS: usize = 64;

/// Why a sandbox's directory could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// It could not be created, opened or locked.
    #[error("{action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It exists and belongs to another user.
    #[error("use {path:?}: it belongs to user {owner}")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
    },
    /// It exists and nothing shows that it is a sandbox's. It is as it was.
    #[error("use {path:?}: it is not a sandbox's directory")]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It is a sandbox's and has something in it that is not. It is as it was.
    #[error("use the directory of {path:?}: that is no file of a sandbox")]
    Stranger {
        /// What is in it.
        path: PathBuf,
    },
    /// Another supervisor runs this sandbox.
    #[error("lock {path:?}: the sandbox is in use{}", by(*.holder))]
    Held {
        /// The directory.
        path: PathBuf,
        /// The process that holds the lock, when it could be read.
        holder: Option<u32>,
    },
    /// Nobody holds the lock, but the daemon of a supervisor that was killed still runs.
    #[error("use {path:?}: process {pid} still serves the sandbox; adopt it or sweep it away")]
    DaemonLives {
        /// The directory.
        path: PathBuf,
        /// The daemon.
        pid: u32,
    },
    /// Its document is not understood, so nobody can tell what belongs to it.
    #[error("use the state in {path:?}")]
    State {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// A predecessor's mount cannot be undone.
    #[error("clear away what is left in {path:?}")]
    Remains {
        /// The directory.
        path: PathBuf,
        /// What is left.
        #[source]
        source: Leftover,
    },
    /// Nobody holds the lock, but a daemon still serves the socket.
    #[error("use the socket {path:?}: something still listens on it{}", by(*.holder))]
    SocketInUse {
        /// The socket.
        path: PathBuf,
        /// The process that began to listen on it, when known.
        holder: Option<u32>,
    },
}

fn by(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

/// Something that could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Leftover {
    /// A file or the directory itself.
    #[error("remove {path:?}")]
    Path {
        /// What is left.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount that could not be taken away, or is not the one that was made.
    #[error("unmount {path:?}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process that was killed and did not end.
    #[error("end process {pid}: it was killed and is still there")]
    Process {
        /// Its id.
        pid: u32,
    },
    /// A process that holds the daemon's lock and is not to be found.
    #[error("end the daemon")]
    Unseen {
        /// What it holds, and why it is not found.
        #[source]
        source: Box<DirError>,
    },
}

impl Leftover {
    /// Whether it has not gone since.
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Self::Path { path, .. } => path.symlink_metadata().is_ok(),
            Self::Process { pid } => !is_dead(*pid),
            Self::Mount { .. } | Self::Unseen { .. } => true,
        }
    }

    /// Whether the next attempt needs to know what the document says.
    pub(crate) fn needs_the_document(&self) -> bool {
        match self {
            Self::Mount { .. } | Self::Process { .. } | Self::Unseen { .. } => true,
            Self::Path { .. } => false,
        }
    }
}

/// A directory that is ours alone.
#[derive(Debug)]
pub(crate) struct SandboxDir {
    path: PathBuf,
    fd: OwnedFd,
    /// Closed, and so unlocked, after everything else is gone. `None` when it was only looked at and has none.
    lock: Option<OwnedFd>,
    /// What is in it goes with this value.
    owned: bool,
}

/// A directory that may be there.
#[derive(Debug)]
pub(crate) enum Entered {
    /// It is, and nobody else uses it. It stays as it is unless it is removed.
    Locked(SandboxDir),
    Missing,
}

/// What a directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A new sandbox, for which any empty directory will do.
    Claim,
    /// What is left of one.
    Enter,
    /// To be looked at and not changed.
    Look,
}

impl SandboxDir {
    /// Creates or enters the directory, locks it, and removes the sockets of a predecessor that is dead. On an
    /// error everything is as it was found.
    pub(crate) fn claim(path: &Path) -> Result<Self, DirError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| DirError::Io {
                action: "create the state directory",
                path: parent.to_owned(),
                source,
            })?;
        }
        for _ in 0..LOCK_ATTEMPTS {
            let made = match rustix::fs::mkdir(path, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(failed("create", path, errno)),
            };
            match Self::open(path, Purpose::Claim) {
                Ok(Entered::Missing) => {}
                Ok(Entered::Locked(dir)) => return dir.succeed(),
                Err(error) => {
                    if made {
                        // Unless somebody else has made something in it.
                        let _ = rustix::fs::rmdir(path);
                    }
                    return Err(error);
                }
            }
        }
        Err(failed("lock", path, Errno::AGAIN))
    }

    /// Enters a directory that is there and takes its lock. What is in it is as it was until it is [signed].
    ///
    /// [signed]: SandboxDir::sign
    pub(crate) fn enter(path: &Path) -> Result<Entered, DirError> {
        Self::open(path, Purpose::Enter)
    }

    /// As [`SandboxDir::enter`], leaving no trace.
    pub(crate) fn look(path: &Path) -> Result<Entered, DirError> {
        Self::open(path, Purpose::Look)
    }

    /// Nothing is changed before it is known that the directory is a sandbox's, or may become one.
    fn open(path: &Path, purpose: Purpose) -> Result<Entered, DirError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Entered::Missing),
            Err(errno) => return Err(failed("open", path, errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed("open", path, e))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(DirError::NotOurs {
                path: path.to_owned(),
                owner: stat.st_uid,
            });
        }
        let foreign = || DirError::Foreign {
            path: path.to_owned(),
        };
        for _ in 0..LOCK_ATTEMPTS {
            match lock::take(path, &fd)? {
                Attempt::Taken(lock) => {
                    ours::check(path, &fd, &stat, &lock)?;
                    return Ok(Entered::Locked(Self::entered(path, fd, Some(lock))));
                }
                Attempt::Changed => continue,
                Attempt::Foreign => return Err(foreign()),
                Attempt::Missing => {
                    let names = ours::names(path, &fd)?;
                    if names.iter().any(|name| name == LOCK) {
                        continue;
                    }
                    // Where there is no lock, there is nothing of ours.
                    if !names.is_empty() || (purpose != Purpose::Claim && !ours::is_private(&stat)) {
                        return Err(foreign());
                    }
                }
            }
            if purpose == Purpose::Look {
                return Ok(Entered::Locked(Self::entered(path, fd, None)));
            }
            let lock = match lock::make(path, &fd)? {
                Attempt::Taken(lock) => lock,
                Attempt::Missing => return Ok(Entered::Missing),
                Attempt::Changed | Attempt::Foreign => continue,
            };
            let dir = Self::entered(path, fd, Some(lock));
            // From its first write on it says whose it is.
            if let Err(error) = dir.sign() {
                let _ = rustix::fs::unlinkat(&dir.fd, LOCK, AtFlags::empty());
                return Err(error);
            }
            return Ok(Entered::Locked(dir));
        }
        Err(failed("lock", path, Errno::AGAIN))
    }

    /// Closes it to others and says in its lock that it is this process's: once it is decided that it is to be.
    pub(crate) fn sign(&self) -> Result<(), DirError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| failed("look at", &self.path, e))?;
        if Mode::from_raw_mode(stat.st_mode) != Mode::RWXU {
            rustix::fs::fchmod(&self.fd, Mode::RWXU).map_err(|e| failed("close to others", &self.path, e))?;
        }
        let signed = self.lock.as_ref().map_or(Ok(()), lock::sign);
        signed.map_err(|source| DirError::Io {
            action: "lock",
            path: self.path.clone(),
            source,
        })
    }

    fn entered(path: &Path, fd: OwnedFd, lock: Option<OwnedFd>) -> Self {
        Self {
            path: path.to_owned(),
            fd,
            lock,
            owned: false,
        }
    }

    /// Makes a predecessor's directory ours, if what is left of it is dead.
    fn succeed(mut self) -> Result<Self, DirError> {
        if let Some(holder) = remains::holders(&self)?.first() {
            return Err(DirError::DaemonLives {
                path: self.path.clone(),
                pid: holder.id(),
            });
        }
        let path = &self.path;
        for name in [API_SOCKET, VHOST_SOCKET, VHOST_SUCCESSOR] {
            let socket = path.join(name);
            if let Some(holder) = listener(&socket, name == API_SOCKET) {
                return Err(DirError::SocketInUse { path: socket, holder });
            }
        }
        if let Some(document) = remains::document(&self)? {
            for left in remains::undo_outside(&document) {
                if left.needs_the_document() {
                    return Err(DirError::Remains {
                        path: path.clone(),
                        source: left,
                    });
                }
                tracing::warn!(
                    error = &left as &dyn std::error::Error,
                    "a dead predecessor's, and left"
                );
            }
        }
        self.sign()?;
        for name in FILES {
            match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) => {
                    tracing::info!(file = %path.join(name).display(), "removed what a dead predecessor left");
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed("remove", &path.join(name), errno)),
            }
        }
        self.owned = true;
        Ok(self)
    }

    /// Makes what is in it go with this value.
    pub(crate) fn own(&mut self) {
        self.owned = true;
    }

    /// Leaves everything where it is, and unlocks it.
    pub(crate) fn leave(mut self) {
        self.owned = false;
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes room for the daemon that is to take a dead one's place: its log is set aside, its API socket is removed.
    /// The name a VMM connects to stays, and is refused, until [`SandboxDir::admit`].
    pub(crate) fn clear_for_successor(&self) -> Result<(), DirError> {
        let done = |action, name: &str, result: Result<(), Errno>| match result {
            Ok(()) | Err(Errno::NOENT | Errno::EXIST) => Ok(()),
            Err(errno) => Err(DirError::Io {
                action,
                path: self.file(name),
                source: errno.into(),
            }),
        };
        for name in [API_SOCKET, VHOST_SUCCESSOR] {
            done(
                "remove",
                name,
                rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()),
            )?;
        }
        done(
            "set aside",
            LOG,
            rustix::fs::renameat(&self.fd, LOG, &self.fd, LOG_OLD),
        )?;
        done(
            "create",
            NOTHING,
            rustix::fs::mkdirat(&self.fd, NOTHING, Mode::RWXU),
        )
    }

    /// An empty directory, once [`SandboxDir::clear_for_successor`] has made it. The path is UTF-8 because the
    /// sockets' paths are.
    pub(crate) fn nothing(&self) -> String {
        self.file(NOTHING).to_string_lossy().into_owned()
    }

    /// Gives the successor's vhost-user socket the name the VMM connects to. A stock nydusd's keeps its other name
    /// as well: it removes that when it has taken a connection.
    pub(crate) fn admit(&self, kind: ProgramKind) -> Result<(), DirError> {
        let admitted = match kind {
            ProgramKind::Embedded => rustix::fs::renameat(&self.fd, VHOST_SUCCESSOR, &self.fd, VHOST_SOCKET),
            ProgramKind::Stock => match rustix::fs::unlinkat(&self.fd, VHOST_SOCKET, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {
                    let flags = AtFlags::empty();
                    rustix::fs::linkat(&self.fd, VHOST_SUCCESSOR, &self.fd, VHOST_SOCKET, flags)
                }
                Err(errno) => Err(errno),
            },
        };
        admitted.map_err(|errno| DirError::Io {
            action: "give the VMM its socket",
            path: self.file(VHOST_SOCKET),
            source: errno.into(),
        })
    }

    /// Removes the files and the directory and gives up the lock; says what could not be removed.
    pub(crate) fn remove(mut self) -> Vec<Leftover> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Vec<Leftover> {
        self.owned = false;
        let mut left = Vec::new();
        let mut note = |path: PathBuf, errno: Errno| {
            left.push(Leftover::Path {
                path,
                source: errno.into(),
            });
        };
        match rustix::fs::unlinkat(&self.fd, NOTHING, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => note(self.file(NOTHING), errno),
        }
        // The lock's name goes last: whoever locks its new incarnation must find no file of ours.
        for name in FILES.into_iter().chain([LOCK]) {
            match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => note(self.file(name), errno),
            }
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A successor was waiting and has made it its own.
            Err(Errno::NOTEMPTY) if self.file(LOCK).exists() => {}
            Err(errno) => note(self.path.clone(), errno),
        }
        left
    }
}

impl Drop for SandboxDir {
    fn drop(&mut self) {
        if self.owned {
            for left in self.remove_all() {
                tracing::warn!(error = &left as &dyn std::error::Error, "left behind");
            }
        }
    }
}

impl AsFd for SandboxDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn failed(action: &'static str, path: &Path, errno: Errno) -> DirError {
    DirError::Io {
        action,
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// Whether something listens on a socket, and who began to, if known. The API socket is asked by connecting; a
/// vhost-user socket must not be, because a stock nydusd serves exactly one connection in its life.
fn listener(path: &Path, may_connect: bool) -> Option<Option<u32>> {
    if !path.exists() {
        return None;
    }
    if !may_connect {
        return listens_by_name(path).then_some(None);
    }
    let address = SocketAddrUnix::new(path).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {
            let holder = rustix::net::sockopt::socket_peercred(&socket)
                .ok()
                .and_then(|cred| u32::try_from(cred.pid.as_raw_nonzero().get()).ok());
            let _ = std::os::unix::net::UnixStream::from(socket).shutdown(Shutdown::Both);
            Some(holder)
        }
        // Its backlog is full: wedged, but alive.
        Err(Errno::AGAIN) => Some(None),
        Err(_) => None,
    }
}

/// Looks a path up in the system's table of unix sockets (of this network namespace).
fn listens_by_name(path: &Path) -> bool {
    const ACCEPTS_CONNECTIONS: &str = "00010000";
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().any(|line| {
        // Num: RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some(ACCEPTS_CONNECTIONS) && fields.nth(3).map(Path::new) == Some(path)
    })
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
