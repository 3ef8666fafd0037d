//! A running daemon: sockets, namespace, device, API, put together and taken apart.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::{DaemonConfig, InitialMount, WorkerLimits};
use crate::control::{Api, Context};
use crate::fuse::FuseServer;
use crate::metrics::Tallies;
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
    /// The address for figures is not to be had.
    #[error("figures cannot be served at {address}")]
    Metrics {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system refuses threads or descriptors.
    #[error("device cannot be set up")]
    Device(#[source] io::Error),
}

/// A daemon that listens on its sockets.
#[derive(Debug)]
pub struct Daemon {
    context: Arc<Context>,
    listener: Listener,
    /// The API, and the figures over TCP.
    apis: Vec<Api>,
    metrics_address: Option<SocketAddr>,
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
        let metrics = config.metrics_addr.map(bind_metrics).transpose()?;
        let pool = pool_config(config.workers);
        let tallies = Arc::new(Tallies::new(pool.most()));
        let namespace = Arc::new(Namespace::new(Arc::clone(&tallies)));
        if let Some(InitialMount { mount_point, command }) = &config.initial_mount {
            namespace.mount(mount_point, command)?;
        }
        let fuse = Arc::new(FuseServer::new(namespace.vfs(), namespace.shares()));
        let device = Device::new(fuse, config.request_queues, tallies, pool).map_err(StartError::Device)?;
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
        let mut apis = Vec::new();
        if let Some(mut socket) = api_socket.take() {
            let api = Api::start(socket.take_listener().ok_or_else(missing)?, Arc::clone(&context));
            sockets.push(socket);
            apis.push(api.map_err(StartError::Device)?);
        }
        let mut metrics_address = None;
        if let Some((listener, address)) = metrics {
            apis.push(Api::start_metrics(listener, Arc::clone(&context)).map_err(StartError::Device)?);
            tracing::info!(%address, "figures are served");
            metrics_address = Some(address);
        }
        Ok(Self {
            context,
            listener,
            apis,
            metrics_address,
            _sockets: sockets,
        })
    }

    /// Waits until somebody asks for the end with `PUT /api/v1/daemon/exit`.
    pub async fn exit_requested(&self) {
        self.context.exit.notified().await;
    }

    /// Where figures are served over TCP; the port that was found, if the one asked for was 0.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Ends the daemon, whatever a guest or a backend is doing. Removes the sockets it has bound.
    pub async fn stop(self) {
        for api in self.apis {
            api.stop(API_GRACE).await;
        }
        drop(self.listener);
    }
}

fn pool_config(limits: WorkerLimits) -> PoolConfig {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let base = match limits.base {
        0 => processors.max(2),
        base => base,
    };
    PoolConfig {
        base,
        max: limits.max,
        poll: limits.poll,
    }
}

/// An address that is taken fails the start before anything else is done.
fn bind_metrics(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use nydusbox_protocol::{BuildVersion, SocketPath};

    use super::*;
    use crate::config::{LogControl, SocketSource};

    fn config(dir: &std::path::Path, metrics_addr: SocketAddr) -> DaemonConfig {
        DaemonConfig {
            vhost_socket: SocketSource::Bind(SocketPath::new(dir.join("vhost.sock")).unwrap()),
            api_socket: None,
            metrics_addr: Some(metrics_addr),
            initial_mount: None,
            request_queues: 1,
            workers: WorkerLimits::default(),
            id: None,
            supervisor: None,
            version: BuildVersion::default(),
            log: LogControl::new(|_| {}),
        }
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn over_tcp_there_are_figures_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let daemon = Daemon::start(config(dir.path(), anywhere)).unwrap();
        let address = daemon.metrics_address().unwrap();
        let answers = tokio::task::spawn_blocking(move || {
            [
                "GET /metrics",
                "PUT /metrics",
                "GET /api/v1/daemon",
                "PUT /api/v1/daemon/exit",
            ]
            .map(|request| ask(address, request))
        });
        let [figures, put, info, exit] = answers.await.unwrap();
        assert!(figures.starts_with("HTTP/1.1 200"), "{figures}");
        assert!(
            figures.contains("content-type: text/plain; version=0.0.4"),
            "{figures}"
        );
        assert!(figures.contains("\nnydusbox_fsd_vmm_connected 0\n"), "{figures}");
        assert!(put.starts_with("HTTP/1.1 400"), "{put}");
        for other in [info, exit] {
            assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        }
        let taken = dir.path().join("second");
        std::fs::create_dir(&taken).unwrap();
        let refused = Daemon::start(config(&taken, address));
        assert!(matches!(refused, Err(StartError::Metrics { .. })));
        assert_eq!(
            std::fs::read_dir(&taken).unwrap().count(),
            0,
            "nothing is left behind"
        );
        daemon.stop().await;
        TcpStream::connect(address).unwrap_err();
    }
}
