//! A running daemon: sockets, namespace, device, API, put together and taken apart.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::{DaemonConfig, InitialMount};
use crate::control::{Api, Context};
use crate::fuse::FuseServer;
use crate::namespace::{MountError, Namespace};
use crate::socket::{ListeningSocket, SocketError};
use crate::transport::{Device, Listener, PoolConfig};

/// How long answers under way may take once the daemon has been told to stop.
const API_GRACE: Duration = Duration::from_millis(50);

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A socket is not to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The mount given on the command line failed.
    #[error("initial mount failed")]
    Mount(#[from] MountError),
    /// The system refuses threads or descriptors.
    #[error("device cannot be set up")]
    Device(#[source] io::Error),
}

/// A daemon that listens on its sockets.
#[derive(Debug)]
pub struct Daemon {
    context: Arc<Context>,
    listener: Listener,
    api: Option<Api>,
    /// Removed last, when nothing uses them any more.
    _sockets: Vec<ListeningSocket>,
}

impl Daemon {
    /// Takes the sockets, makes the initial mount and begins to serve.
    ///
    /// Must be called within a tokio runtime; the API runs on it.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start(config: DaemonConfig) -> Result<Self, StartError> {
        let mut vhost_socket = ListeningSocket::open(config.vhost_socket)?;
        let mut api_socket = config.api_socket.map(ListeningSocket::open).transpose()?;
        let namespace = Arc::new(Namespace::new());
        if let Some(InitialMount { mount_point, command }) = &config.initial_mount {
            namespace.mount(mount_point, command)?;
        }
        let fuse = Arc::new(FuseServer::new(namespace.vfs(), namespace.shares()));
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let base = if config.workers.base == 0 {
            processors.max(2)
        } else {
            config.workers.base
        };
        let pool = PoolConfig {
            base,
            max: config.workers.max,
            poll: config.workers.poll,
        };
        let device = Device::new(fuse, config.request_queues, pool).map_err(StartError::Device)?;
        let context = Arc::new(Context {
            namespace,
            device: Arc::clone(&device),
            exit: Notify::new(),
            id: config.id,
            supervisor: config.supervisor,
            version: config.version,
            log: config.log,
        });
        let missing = || StartError::Device(io::Error::other("socket has no listener"));
        let listener = Listener::start(vhost_socket.take_listener().ok_or_else(missing)?, device)
            .map_err(StartError::Device)?;
        let mut sockets = vec![vhost_socket];
        let api = match api_socket.take() {
            None => None,
            Some(mut socket) => {
                let api = Api::start(socket.take_listener().ok_or_else(missing)?, Arc::clone(&context));
                sockets.push(socket);
                Some(api.map_err(StartError::Device)?)
            }
        };
        Ok(Self {
            context,
            listener,
            api,
            _sockets: sockets,
        })
    }

    /// Waits until somebody asks for the end with `PUT /api/v1/daemon/exit`.
    pub async fn exit_requested(&self) {
        self.context.exit.notified().await;
    }

    /// Ends the daemon, whatever a guest or a backend is doing. Removes the sockets it has bound.
    pub async fn stop(self) {
        if let Some(api) = self.api {
            api.stop(API_GRACE).await;
        }
        drop(self.listener);
    }
}
