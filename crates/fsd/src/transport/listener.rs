//! Accepts one frontend after the other and feeds its messages to the handler.
//!
//! A vhost-user connection is one VMM; when it leaves, the next may come. A peer that breaks the protocol loses
//! its connection, nothing else.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nydusbox_protocol::log::{FRONTEND_CONNECTED, FRONTEND_LEFT};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::Device;
use super::handler::Handler;

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
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn serve(socket: &UnixListener, device: &Arc<Device>, stop: &Stop) -> io::Result<()> {
    while let Wait::Ready = wait(socket.as_fd(), stop)? {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
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
        *stop.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        device.set_attached(true);
        tracing::info!("{FRONTEND_CONNECTED}");
        serve_frontend(stream, device, stop);
        device.set_attached(false);
        *stop.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        device.reset_session();
        tracing::info!("{FRONTEND_LEFT}");
    }
    Ok(())
}

fn serve_frontend(stream: UnixStream, device: &Arc<Device>, stop: &Stop) {
    let Ok(watched) = stream.try_clone() else { return };
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
