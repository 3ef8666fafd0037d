//! An image that is mounted on this host, to look around in: read-only, by FUSE.
//!
//! ```text
//! kernel -> /dev/fuse -> fuse-backend-rs' session and server -> namespace -> image
//! ```
//! The image is served as it is to guests; the requests come from this host's kernel, which is trusted, so that what
//! `fuse/` does against guests is not needed, and they are not counted. Never outlives its process: what is left of
//! one that was killed is recognised by the next. Read `namespace/mod.rs` next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Error as TransportError, FuseChannel, FuseSession};
use nydusbox_protocol::{MountCommand, MountPoint};
use rustix::io::Errno;

use crate::fuse::error_reply;
use crate::metrics::Tallies;
use crate::namespace::{MountError, Namespace};

/// How the kernel's table of mounts names the type: `fuse.nydusbox`.
const SUBTYPE: &str = "nydusbox";
const DEVICE: &str = "/dev/fuse";
/// Requests that may wait for blobs at once; further ones queue.
const THREADS: usize = 8;
/// Of `fuse_in_header`, up to and with `unique`.
const HEADER_BYTES: usize = 16;
/// How long requests under way may take once the end was asked for; then they are answered by nobody.
const GRACE: Duration = Duration::from_millis(500);

/// Why an image is not mounted on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostMountError {
    /// There is no such directory, or it can't be looked at.
    #[error("{} cannot be mounted on", mountpoint.display())]
    Mountpoint {
        /// The directory.
        mountpoint: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something is mounted there whose server was killed.
    #[error("{} has a mount whose process is gone", mountpoint.display())]
    Stale {
        /// The directory.
        mountpoint: PathBuf,
    },
    /// An image is mounted there.
    #[error("an image is mounted on {} already", mountpoint.display())]
    Occupied {
        /// The directory.
        mountpoint: PathBuf,
    },
    /// The kernel's FUSE is not to be had.
    #[error("{DEVICE} cannot be opened")]
    Device {
        /// Why not.
        source: io::Error,
    },
    /// The kernel lets root mount only, and there is no program that does it for others.
    #[error("mounting takes CAP_SYS_ADMIN or the program fusermount3, and there is neither")]
    NotPermitted,
    /// The kernel or fusermount3 refused.
    #[error("{} cannot be mounted on: {why}", mountpoint.display())]
    Refused {
        /// The directory.
        mountpoint: PathBuf,
        /// What they said.
        why: String,
    },
    /// The image can't be served.
    #[error(transparent)]
    Image(#[from] MountError),
    /// No threads are to be had.
    #[error("requests cannot be served")]
    Threads {
        /// Why not.
        source: io::Error,
    },
}

/// How a mount came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostMountEnd {
    /// [`HostUnmount`] was asked to.
    Stopped,
    /// Somebody has unmounted it.
    Unmounted,
}

enum Event {
    Stop,
    /// A thread has ended: there is nothing to serve any more.
    Ended,
}

/// A mounted image. It is unmounted when this is dropped.
pub struct HostMount {
    session: FuseSession,
    stop: Sender<Event>,
    events: Receiver<Event>,
    threads: usize,
    /// What is served lasts as long as the mount.
    _namespace: Namespace,
}

impl std::fmt::Debug for HostMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostMount")
            .field("mountpoint", &self.session.mountpoint())
            .finish_non_exhaustive()
    }
}

/// Asks a [`HostMount`] to end, from any thread.
#[derive(Debug, Clone)]
pub struct HostUnmount(Sender<Event>);

impl HostUnmount {
    /// Asks it.
    pub fn unmount(&self) {
        // Nobody listens any more if it has ended.
        let _ = self.0.send(Event::Stop);
    }
}

impl HostMount {
    /// Mounts the image of `command` on the directory `mountpoint`; `source` is what the table of mounts shows as
    /// mounted. For root everybody can look at it, for others only they themselves.
    ///
    /// # Errors
    /// [`HostMountError`]; nothing is left behind.
    pub fn start(command: &MountCommand, mountpoint: &Path, source: &str) -> Result<Self, HostMountError> {
        look_at(mountpoint)?;
        let namespace = Namespace::new(Arc::new(Tallies::new(0)));
        let root = MountPoint::new("/").expect("the root is a mount point");
        namespace.mount(&root, command)?;
        let refused = |error: TransportError| HostMountError::Refused {
            mountpoint: mountpoint.to_owned(),
            why: error.to_string(),
        };
        let mut session = FuseSession::new(mountpoint, source, SUBTYPE, true).map_err(refused)?;
        session.set_allow_other(rustix::process::geteuid().is_root());
        session.mount().map_err(|error| match error {
            // Of fusermount3, which is tried where the kernel refuses.
            TransportError::IoError(e) if e.kind() == io::ErrorKind::NotFound => HostMountError::NotPermitted,
            error => refused(error),
        })?;
        let (stop, events) = mpsc::channel();
        for number in 0..THREADS {
            let device = session.get_fuse_file().map(File::try_clone).transpose();
            let mut thread = Thread {
                server: Server::new(namespace.vfs()),
                channel: session.new_channel().map_err(refused)?,
                device: device.map_err(|source| HostMountError::Threads { source })?,
            };
            let ended = stop.clone();
            thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || {
                    thread.serve();
                    let _ = ended.send(Event::Ended);
                })
                .map_err(|source| HostMountError::Threads { source })?;
        }
        Ok(Self {
            session,
            stop,
            events,
            threads: THREADS,
            _namespace: namespace,
        })
    }

    /// What asks it to end.
    #[must_use]
    pub fn stopper(&self) -> HostUnmount {
        HostUnmount(self.stop.clone())
    }

    /// Waits until it is asked to end or somebody unmounts it. Then it is gone from the tree at once, and whoever has
    /// a file open in it gets ENOTCONN.
    ///
    /// # Errors
    /// [`HostMountError::Refused`] if it can't be unmounted.
    pub fn wait(mut self) -> Result<HostMountEnd, HostMountError> {
        let mut running = self.threads;
        // The sender in `self` keeps the channel open.
        let end = match self.events.recv() {
            Ok(Event::Ended) => {
                running -= 1;
                HostMountEnd::Unmounted
            }
            Ok(Event::Stop) | Err(_) => HostMountEnd::Stopped,
        };
        let refused = |session: &FuseSession, error: TransportError| HostMountError::Refused {
            mountpoint: session.mountpoint().to_owned(),
            why: error.to_string(),
        };
        if let Err(error) = self.session.wake() {
            return Err(refused(&self.session, error));
        }
        let deadline = Instant::now() + GRACE;
        while running > 0 {
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Ended) => running -= 1,
                Ok(Event::Stop) => {}
                Err(_) => break,
            }
        }
        if let Err(error) = self.session.umount() {
            return Err(refused(&self.session, error));
        }
        Ok(end)
    }
}

/// What serves requests.
struct Thread {
    server: Server<Arc<Vfs>>,
    channel: FuseChannel,
    device: Option<File>,
}

impl Thread {
    /// Serves until there is nothing to serve any more.
    fn serve(&mut self) {
        // It ends when it is told to, or with the mount, which the session tells in different ways.
        while let Ok(Some((reader, writer))) = self.channel.get_request() {
            let mut header = [0; HEADER_BYTES];
            let unique = match reader.clone().read_exact(&mut header) {
                Ok(()) => u64::from_ne_bytes(header[8..].try_into().unwrap_or_default()),
                Err(_) => continue,
            };
            // A damaged image costs the request, not the mount.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                self.server.handle_message(reader, writer.into(), None, None)
            }));
            if matches!(outcome, Ok(Ok(_))) {
                continue;
            }
            if outcome.is_err() {
                tracing::error!("a request failed unexpectedly");
            }
            // Whoever asked must not wait for ever. One that was answered, or given up, the kernel no longer knows.
            if let Some(mut device) = self.device.as_ref() {
                let _ = device.write(&error_reply(unique, Errno::IO));
            }
        }
    }
}

/// Looks for what the kernel would refuse with less to say.
fn look_at(mountpoint: &Path) -> Result<(), HostMountError> {
    let unusable = |source: io::Error| HostMountError::Mountpoint {
        mountpoint: mountpoint.to_owned(),
        source,
    };
    let stale = || HostMountError::Stale {
        mountpoint: mountpoint.to_owned(),
    };
    match fs::metadata(mountpoint) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(unusable(io::ErrorKind::NotADirectory.into())),
        Err(error) if is_gone(&error) => return Err(stale()),
        Err(error) => return Err(unusable(error)),
    }
    let place = mountpoint.canonicalize().map_err(unusable)?;
    let table = fs::read("/proc/self/mountinfo").map_err(unusable)?;
    if is_mounted(&table, &place) {
        // The kernel may know the attributes still; what is in a directory it has to ask for.
        if fs::read_dir(&place).is_err_and(|error| is_gone(&error)) {
            return Err(stale());
        }
        return Err(HostMountError::Occupied {
            mountpoint: mountpoint.to_owned(),
        });
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|source| HostMountError::Device { source })?;
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOTCONN)
}

/// Whether the table of mounts (proc_pid_mountinfo(5)) has an image of ours at `place`.
fn is_mounted(table: &[u8], place: &Path) -> bool {
    let place = escaped(place.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let here = fields.nth(4).is_some_and(|field| field == place);
        // After a dash come the type, the source, and options.
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        here && kind.and_then(|kind| kind.strip_prefix(b"fuse.")) == Some(SUBTYPE.as_bytes())
    })
}

/// A path as the table has it: white space and backslashes in octal.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_at_that_very_place_is_found() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 22 0:50 / /mnt/a\\040b ro,nosuid shared:1 - fuse.nydusbox oci:x ro\n\
            41 22 0:51 / /mnt/other ro - fuse.sshfs host: ro\n";
        assert!(is_mounted(table, Path::new("/mnt/a b")));
        for elsewhere in ["/mnt/a", "/mnt/other", "/", "/mnt/a b/c"] {
            assert!(!is_mounted(table, Path::new(elsewhere)), "{elsewhere}");
        }
    }
}
