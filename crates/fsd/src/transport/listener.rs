//! Accepts one frontend after the other and feeds its messages to the handler.
//!
//! A vhost-user connection is one VMM; when it leaves, the next may come. A peer that breaks the protocol loses
//! its connection, nothing else. What the host lacks for the moment, descriptors or memory, is waited for.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nydusbox_protocol::log::{FRONTEND_CONNECTED, FRONTEND_LEFT};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::Device;
use super::handler::Handler;

/// Between two tries at what the host lacked something for.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The thread that owns the vhost-user socket.
#[derive(Debug)]
pub(crate) struct Listener {
    stop: Arc<Stop>,
    device: Arc<Device>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Stop {
    event: OwnedFd,
    /// The connected frontend; shut down to end a read in the middle of a message.
    current: Mutex<Option<UnixStream>>,
}

impl Listener {
    /// Starts serving the socket.
    pub(crate) fn start(socket: UnixListener, device: Arc<Device>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let stop = Arc::new(Stop {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            current: Mutex::new(None),
        });
        let for_thread = (Arc::clone(&stop), Arc::clone(&device));
        let thread = thread::Builder::new().name("vhost-user".into()).spawn(move || {
            let (stop, device) = for_thread;
            if let Err(e) = serve(&socket, &device, &stop) {
                tracing::error!(error = %e, "the vhost-user socket is no longer served");
            }
        })?;
        Ok(Self {
            stop,
            device,
            thread: Some(thread),
        })
    }
}

/// Ends the connection and the thread. Requests that block in a backend are not waited for.
impl Drop for Listener {
    fn drop(&mut self) {
        self.device.stop();
        let _ = rustix::io::write(&self.stop.event, &1u64.to_ne_bytes());
        if let Some(stream) = &*self.stop.current.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the vhost-user thread failed unexpectedly");
        }
    }
}

/// What a wait on a descriptor ended with.
enum Wait {
    Ready,
    Stopped,
}

fn wait(fd: BorrowedFd<'_>, stop: &Stop) -> io::Result<Wait> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
            PollFd::new(&stop.event, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Ok(Wait::Stopped),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(Wait::Ready),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether something failed for want of what others may give back.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)
    )
}

/// Tries until the host has what it takes; `None` if the daemon stops first.
fn patiently<T>(
    stop: &Stop,
    pause: &Timespec,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<Option<T>> {
    let mut said = false;
    loop {
        match attempt() {
            Err(e) if is_passing(&e) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(error = %e, "a frontend has to wait until the host can serve it");
                }
            }
            done => return done.map(Some),
        }
        let mut fds = [PollFd::new(&stop.event, PollFlags::IN)];
        if poll(&mut fds, Some(pause)).is_ok_and(|ready| ready > 0) {
            return Ok(None);
        }
    }
}

fn serve(socket: &UnixListener, device: &Arc<Device>, stop: &Stop) -> io::Result<()> {
    while let Some(Wait::Ready) = patiently(stop, &PAUSE, || wait(socket.as_fd(), stop))? {
        let stream = match patiently(stop, &PAUSE, || socket.accept()) {
            Ok(Some((stream, _))) => stream,
            Ok(None) => break,
            // The peer may have gone before it was accepted.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e),
        };
        stream.set_nonblocking(false)?;
        let Some((current, watched)) =
            patiently(stop, &PAUSE, || Ok((stream.try_clone()?, stream.try_clone()?)))?
        else {
            break;
        };
        *stop.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
        device.set_attached(true);
        tracing::info!("{FRONTEND_CONNECTED}");
        serve_frontend(stream, &watched, device, stop);
        device.set_attached(false);
        *stop.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        device.reset_session();
        tracing::info!("{FRONTEND_LEFT}");
    }
    Ok(())
}

fn serve_frontend(stream: UnixStream, watched: &UnixStream, device: &Arc<Device>, stop: &Stop) {
    let handler = Arc::new(Mutex::new(Handler::new(Arc::clone(device))));
    let mut requests = BackendReqHandler::from_stream(stream, handler);
    loop {
        match wait(watched.as_fd(), stop) {
            Ok(Wait::Ready) => {}
            Ok(Wait::Stopped) => return,
            Err(e) => {
                tracing::warn!(error = %e, "frontend cannot be waited for");
                return;
            }
        }
        match requests.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => return,
            // Refused, and the frontend was told so or did not ask to be told; the connection is still in step.
            Err(Error::ReqHandlerError(e)) => tracing::warn!(error = %e, "frontend's request was refused"),
            Err(e) => {
                tracing::warn!(error = %e, "frontend broke the protocol and is disconnected");
                return;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    fn stop() -> Stop {
        Stop {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            current: Mutex::new(None),
        }
    }

    #[test]
    fn what_the_host_lacks_for_the_moment_is_waited_for() {
        let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        let mut results = lacks.map(|errno| Err(errno.into())).into_iter().chain([Ok(7)]);
        let got = patiently(&stop(), &AT_ONCE, || results.next().unwrap());
        assert_eq!(got.unwrap(), Some(7));
        let other = patiently(&stop(), &AT_ONCE, || Err::<(), _>(Errno::INVAL.into()));
        assert_eq!(
            other.unwrap_err().raw_os_error(),
            Some(Errno::INVAL.raw_os_error())
        );
    }

    #[test]
    fn who_waits_for_the_host_stops_with_the_daemon() {
        let stop = stop();
        rustix::io::write(&stop.event, &1u64.to_ne_bytes()).unwrap();
        let never = Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        };
        let got = patiently(&stop, &never, || Err::<(), _>(Errno::MFILE.into()));
        assert!(got.unwrap().is_none());
    }
}
