//! Listening sockets: bound without taking over a live one, removed without removing somebody else's.
//!
//! Next to each bound socket stands `<socket>.lock`, locked while the daemon lives. The kernel gives the lock up
//! when the process ends, however it ends; the next daemon then removes what was left. A socket of a daemon that
//! keeps no lock (nydusd) is recognised by the kernel's list of listening sockets: connecting to find out would
//! use up the one connection that daemon ever accepts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SocketPath;
use rustix::fs::{FlockOperation, flock};

use crate::config::SocketSource;

/// Why a socket is not listening.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A live daemon listens there.
    #[error("socket {path:?} is in use by another daemon")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{path:?} exists and is not a socket")]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("socket {path:?} cannot be {action}")]
    Io {
        /// The socket, or its lock.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket; removed when dropped if it was bound here.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    listener: Option<UnixListener>,
    /// Undone when dropped.
    _bound: Option<Bound>,
}

/// What was made for a bound socket, undone in [`Drop`].
#[derive(Debug)]
struct Bound {
    socket: PathBuf,
    /// Device and inode of our socket: a path may have been given to somebody else since.
    identity: (u64, u64),
    /// Given up after the socket is removed.
    _lock: Lock,
}

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl ListeningSocket {
    pub(crate) fn open(source: SocketSource) -> Result<Self, SocketError> {
        match source {
            SocketSource::Inherited(fd) => Ok(Self {
                listener: Some(UnixListener::from(fd)),
                _bound: None,
            }),
            SocketSource::Bind(path) => Self::bind(&path),
        }
    }

    fn bind(path: &SocketPath) -> Result<Self, SocketError> {
        let path = path.as_path();
        let lock = Lock::take(path)?;
        remove_stale(path)?;
        let failed = |action| {
            move |source| SocketError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let listener = UnixListener::bind(path).map_err(failed("bound"))?;
        let meta = path.symlink_metadata().map_err(failed("examined"))?;
        let bound = Bound {
            socket: path.to_owned(),
            identity: (meta.dev(), meta.ino()),
            _lock: lock,
        };
        Ok(Self {
            listener: Some(listener),
            _bound: Some(bound),
        })
    }

    /// The listener; it can be taken once.
    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = self
            .socket
            .symlink_metadata()
            .is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours && let Err(e) = std::fs::remove_file(&self.socket) {
            tracing::warn!(path = %self.socket.display(), error = %e, "socket could not be removed");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked, see `take`.
        if let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "lock could not be removed");
        }
    }
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| SocketError::Io {
            path: path.clone(),
            action: "locked",
            source,
        };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(SocketError::InUse {
                        path: socket.to_owned(),
                    });
                }
                Err(e) => return Err(failed(e.into())),
            }
            // The previous owner removes the file before it lets go of the lock. What was locked must still be
            // what is found under the name.
            let locked = file.metadata().map_err(failed)?;
            let named = path.symlink_metadata().ok();
            if named.is_some_and(|m| (m.dev(), m.ino()) == (locked.dev(), locked.ino())) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

/// Removes a socket nobody listens on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |action| {
        move |source| SocketError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("examined")(e)),
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    if is_listening(path) {
        return Err(SocketError::InUse {
            path: path.to_owned(),
        });
    }
    std::fs::remove_file(path).map_err(failed("removed"))
}

/// Whether the kernel has a listening socket bound to this path (proc(5), `/proc/net/unix`).
fn is_listening(path: &Path) -> bool {
    /// `__SO_ACCEPTCON` in the column `Flags`.
    const ACCEPTCON: u64 = 1 << 16;
    let Ok(table) = std::fs::read_to_string("/proc/net/unix") else {
        return false;
    };
    table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace();
        let flags = columns
            .nth(3)
            .and_then(|f| u64::from_str_radix(f, 16).ok())
            .unwrap_or(0);
        let bound_to = columns.nth(3);
        flags & ACCEPTCON != 0 && bound_to.is_some_and(|b| Path::new(b) == path)
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("nb-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn socket(&self) -> SocketSource {
            SocketSource::Bind(SocketPath::new(self.0.join("s")).unwrap())
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_is_left_after_drop() {
        let dir = Dir::new("left");
        drop(ListeningSocket::open(dir.socket()).unwrap());
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    }

    #[test]
    fn a_live_socket_is_not_taken_over() {
        let dir = Dir::new("live");
        let _first = ListeningSocket::open(dir.socket()).unwrap();
        assert!(matches!(
            ListeningSocket::open(dir.socket()),
            Err(SocketError::InUse { .. })
        ));
    }

    #[test]
    fn a_lock_excludes_a_second_daemon_before_the_first_has_bound() {
        let dir = Dir::new("lock");
        let first = Lock::take(&dir.0.join("s")).unwrap();
        assert!(matches!(
            ListeningSocket::open(dir.socket()),
            Err(SocketError::InUse { .. })
        ));
        drop(first);
        ListeningSocket::open(dir.socket()).unwrap();
    }

    #[test]
    fn a_live_socket_without_a_lock_is_not_taken_over() {
        let dir = Dir::new("nolock");
        let _foreign = UnixListener::bind(dir.0.join("s")).unwrap();
        assert!(matches!(
            ListeningSocket::open(dir.socket()),
            Err(SocketError::InUse { .. })
        ));
        assert!(!dir.0.join("s.lock").exists());
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let dir = Dir::new("dead");
        drop(UnixListener::bind(dir.0.join("s")).unwrap());
        ListeningSocket::open(dir.socket()).unwrap();
    }

    #[test]
    fn a_file_in_the_way_stays() {
        let dir = Dir::new("file");
        std::fs::write(dir.0.join("s"), "precious").unwrap();
        assert!(matches!(
            ListeningSocket::open(dir.socket()),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read_to_string(dir.0.join("s")).unwrap(), "precious");
    }

    #[test]
    fn a_socket_that_was_replaced_is_left_alone() {
        let dir = Dir::new("replaced");
        let socket = ListeningSocket::open(dir.socket()).unwrap();
        std::fs::remove_file(dir.0.join("s")).unwrap();
        let _other = UnixListener::bind(dir.0.join("s")).unwrap();
        drop(socket);
        assert!(dir.0.join("s").exists());
    }
}
