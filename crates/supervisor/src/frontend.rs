//! Whether a frontend is connected to a stock nydusd, which does not tell: seen from outside.
//!
//! It takes one connection in its life, unlinks its socket then, and closes the connection when the frontend has
//! left. The kernel shows the connection in the table of sockets of the daemon's network namespace, by the path the
//! socket was bound to, and among the daemon's descriptors. Nothing is opened, duplicated or connected. Driven by
//! [`crate::driver`]; the embedded daemon is asked instead ([`crate::health`]).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nydusbox_protocol::SocketPath;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::program::ProgramKind;

/// How often it is looked. An inotify watch would tell a connection at once, but a user may have 128 of them, and
/// sandboxes are more; that one has ended, nothing tells.
const LOOK: Duration = Duration::from_millis(500);
/// How long a connection that was closed may precede the end of the daemon, which closes it too.
const EXIT_SHOWS: Duration = Duration::from_millis(50);
/// `SS_CONNECTED` in `/proc/net/unix` (proc(5)).
const CONNECTED: &[u8] = b"03";

/// What is known of the frontend.
#[derive(Debug, PartialEq, Eq)]
enum Sight {
    Awaited,
    Connected(Connection),
    /// It was connected; that its end is not the daemon's is still to be seen.
    Closing,
    /// It has left, it cannot be seen, or the daemon tells itself.
    Over,
}

/// Looks at one daemon.
#[derive(Debug)]
pub(crate) struct FrontendWatch {
    pid: u32,
    /// Where the daemon has bound its vhost-user socket.
    bound: PathBuf,
    /// All names it may have bound it to, if it was started by somebody else.
    names: [PathBuf; 2],
    sight: Sight,
    /// What was said last.
    told: Option<bool>,
    due: Alarm,
}

impl FrontendWatch {
    /// Of a daemon that has bound its socket to `bound`, or to `other` if it was taken over.
    pub(crate) fn new(kind: ProgramKind, pid: u32, bound: &SocketPath, other: &SocketPath) -> Self {
        let path = |socket: &SocketPath| socket.as_path().to_owned();
        Self {
            pid,
            bound: path(bound),
            names: [path(bound), path(other)],
            sight: match kind {
                ProgramKind::Embedded => Sight::Over,
                ProgramKind::Stock => Sight::Awaited,
            },
            told: None,
            due: Alarm::at(Instant::now() + LOOK),
        }
    }

    /// Whether one has ever been connected.
    pub(crate) fn seen(&self) -> bool {
        !self.bound.exists()
    }

    /// Whether one is connected now, of a daemon that may have been taken over.
    pub(crate) fn look_at_once(&mut self) -> Option<bool> {
        if self.sight == Sight::Over {
            return None;
        }
        if let Ok(Some(connection)) = Connection::find(self.pid, &self.names) {
            self.sight = Sight::Connected(connection);
        }
        self.told = Some(self.sight != Sight::Awaited);
        self.told
    }

    /// Whether one is connected, each time that has changed, until it has left. Cancel safe.
    pub(crate) async fn look(&mut self) -> bool {
        while self.sight != Sight::Over {
            self.due.rung().await;
            let connected = self.look_again();
            if self.told.replace(connected) != Some(connected) {
                return connected;
            }
        }
        std::future::pending().await
    }

    fn look_again(&mut self) -> bool {
        let (sight, again) = match std::mem::replace(&mut self.sight, Sight::Over) {
            Sight::Awaited if !self.seen() => (Sight::Awaited, LOOK),
            Sight::Awaited => match Connection::find(self.pid, &self.names) {
                Ok(Some(connection)) => (Sight::Connected(connection), LOOK),
                Ok(None) => (Sight::Closing, EXIT_SHOWS),
                Err(error) => {
                    tracing::debug!(pid = self.pid, %error, "cannot see when the VMM leaves");
                    return true;
                }
            },
            Sight::Connected(connection) if connection.is_open() => (Sight::Connected(connection), LOOK),
            Sight::Connected(_) => (Sight::Closing, EXIT_SHOWS),
            Sight::Closing | Sight::Over => return false,
        };
        self.sight = sight;
        self.due.set(Instant::now() + again);
        self.sight != Sight::Awaited
    }

    /// Whether one has come that was not told yet. The last look, at a daemon that has ended.
    pub(crate) fn came_unseen(&mut self) -> bool {
        std::mem::replace(&mut self.sight, Sight::Over) == Sight::Awaited && self.seen()
    }
}

/// A connection that a process has accepted.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    /// The descriptor, as a symbolic link.
    link: PathBuf,
    /// What it leads to as long as it is that connection.
    socket: PathBuf,
}

impl Connection {
    /// The connection of a process to a socket that was bound to one of these names.
    ///
    /// # Errors
    /// What the kernel said: another user's processes cannot be looked at.
    fn find(pid: u32, names: &[PathBuf]) -> io::Result<Option<Self>> {
        let table = std::fs::read(format!("/proc/{pid}/net/unix"))?;
        let sockets: Vec<PathBuf> = connected(&table, names).collect();
        if sockets.is_empty() {
            return Ok(None);
        }
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let link = entry?.path();
            // One may be closed meanwhile.
            if let Ok(socket) = std::fs::read_link(&link)
                && sockets.contains(&socket)
            {
                return Ok(Some(Self { link, socket }));
            }
        }
        Ok(None)
    }

    fn is_open(&self) -> bool {
        std::fs::read_link(&self.link).is_ok_and(|socket| socket == self.socket)
    }
}

/// The accepted connections to these names in a table as proc(5) has it, as a descriptor's link shows them.
fn connected(table: &[u8], names: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let lines = table.split(|&byte| byte == b'\n').filter(|line| {
        // Paths may have spaces; a name is preceded by one.
        let is_of = |name: &PathBuf| {
            let rest = line.strip_suffix(name.as_os_str().as_bytes());
            rest.is_some_and(|rest| rest.ends_with(b" ") && words(rest).count() == 7)
        };
        names.iter().any(is_of)
    });
    lines.filter_map(|line| {
        let words: Vec<&[u8]> = words(line).take(7).collect();
        let [.., CONNECTED, inode] = words[..] else {
            return None;
        };
        Some(format!("socket:[{}]", std::str::from_utf8(inode).ok()?).into())
    })
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_connections_to_that_name_are_found() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/s 1/vhost.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03   101 /run/s 1/vhost.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 102\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 103 /other /run/s 1/vhost.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 104 /run/s 1/vhost.sock.next\n";
        let found: Vec<PathBuf> = connected(table, &["/run/s 1/vhost.sock".into()]).collect();
        assert_eq!(found, [PathBuf::from("socket:[101]")]);
        assert_eq!(connected(b"", &["/x".into()]).count(), 0);
    }

    /// Whether it is looked and nothing told.
    async fn no_news(watch: &mut FrontendWatch) -> bool {
        let before = watch.due.due();
        let told = tokio::time::timeout(2 * LOOK, watch.look()).await;
        told.is_err() && watch.due.due() > before
    }

    /// As nydusd does it: one connection, and then no name any more.
    #[tokio::test(start_paused = true)]
    async fn a_frontend_is_seen_to_come_and_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| SocketPath::new(dir.path().join(name)).unwrap();
        let (bound, other) = (path("vhost.sock"), path("vhost.sock.next"));
        let mut watch = FrontendWatch::new(ProgramKind::Stock, std::process::id(), &bound, &other);
        let listener = UnixListener::bind(bound.as_path()).unwrap();
        assert_eq!(watch.look_at_once(), Some(false));
        assert!(no_news(&mut watch).await && !watch.seen());
        let frontend = UnixStream::connect(bound.as_path()).unwrap();
        assert!(no_news(&mut watch).await, "nobody has accepted it");
        let (accepted, _) = listener.accept().unwrap();
        std::fs::remove_file(bound.as_path()).unwrap();
        assert!(watch.look().await && watch.seen());
        assert!(no_news(&mut watch).await);
        let mut adopted = FrontendWatch::new(ProgramKind::Stock, std::process::id(), &other, &bound);
        assert_eq!(adopted.look_at_once(), Some(true));
        drop((accepted, frontend));
        let begun = Instant::now();
        assert!(!watch.look().await, "not at once: it may be the daemon's end");
        assert!(begun.elapsed() >= EXIT_SHOWS);
        assert!(begun.elapsed() <= LOOK + EXIT_SHOWS);
        let for_ever = Duration::from_secs(3600);
        assert!(tokio::time::timeout(for_ever, watch.look()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_came_and_left_between_two_looks_is_told_as_both() {
        let dir = tempfile::tempdir().unwrap();
        let bound = SocketPath::new(dir.path().join("vhost.sock")).unwrap();
        let mut watch = FrontendWatch::new(ProgramKind::Stock, std::process::id(), &bound, &bound);
        assert!(watch.look().await);
        assert!(!watch.look().await);
    }

    #[tokio::test]
    async fn the_last_look_tells_what_was_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let bound = SocketPath::new(dir.path().join("vhost.sock")).unwrap();
        let watch = |kind| FrontendWatch::new(kind, std::process::id(), &bound, &bound);
        let mut stock = watch(ProgramKind::Stock);
        assert!(stock.came_unseen());
        assert!(!stock.came_unseen(), "it is told once");
        assert!(!watch(ProgramKind::Embedded).came_unseen());
    }
}
