//! The HTTP API on the daemon's socket: nydusd's paths, bodies and statuses; and over TCP, figures and nothing else.
//!
//! Connections are served side by side and mounts run on blocking threads, so a slow mount delays no other call.
//! This file accepts and reads; `handler.rs` decides what a request means, `metrics.rs` shows counters.

mod handler;
mod metrics;
mod query;

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nydusbox_protocol::{ApiError, BuildVersion, Endpoint, ErrorCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::LogControl;
use crate::metrics::prometheus::CONTENT_TYPE as CONTENT_TYPE_METRICS;
use crate::namespace::Namespace;
use crate::transport::Device;

/// The largest request body accepted, in bytes. nydusd takes 50 KiB, which some configurations exceed.
const MAX_BODY: usize = 1 << 20;

/// How much of a larger body is read before the connection is given up, in bytes.
const MAX_THROWN_AWAY: usize = 16 << 20;

/// Connections over TCP at once. One Prometheus needs one, and whoever opens more may come from anywhere.
const MOST_SCRAPERS: usize = 16;

/// How long a client over TCP may take to say what it wants.
const SCRAPER_PATIENCE: Duration = Duration::from_secs(10);

/// What the API works on.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) device: Arc<Device>,
    pub(crate) exit: Notify,
    pub(crate) id: Option<String>,
    pub(crate) supervisor: Option<String>,
    pub(crate) version: BuildVersion,
    pub(crate) log: LogControl,
}

/// What a request is answered with.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// 204.
    Done,
    /// 200 with a JSON document.
    Json(String),
    /// 200 with figures in Prometheus' text format.
    Metrics(String),
    /// The status of the code, with the flat error body.
    Failed(ApiError),
}

impl Answer {
    pub(crate) fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Failed(ApiError {
            code,
            message: message.into(),
        })
    }
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Api {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Api {
    /// Serves everything.
    pub(crate) fn start(listener: StdUnixListener, context: Arc<Context>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::on(Door::Api(UnixListener::from_std(listener)?), context))
    }

    /// Serves figures only.
    pub(crate) fn start_metrics(listener: StdTcpListener, context: Arc<Context>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::on(Door::Metrics(TcpListener::from_std(listener)?), context))
    }

    fn on(door: Door, context: Arc<Context>) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self {
            stop,
            task: tokio::spawn(accept(door, context, stopped)),
        }
    }

    /// Answers what is under way, for so long at the most, and closes.
    pub(crate) async fn stop(mut self, grace: Duration) {
        let _ = self.stop.send(true);
        if tokio::time::timeout(grace, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Where clients come in.
enum Door {
    Api(UnixListener),
    Metrics(TcpListener),
}

/// A client's connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Door {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Api(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Metrics(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    fn has_room(&self, connections: usize) -> bool {
        match self {
            Self::Api(_) => true,
            Self::Metrics(_) => connections < MOST_SCRAPERS,
        }
    }
}

async fn accept(door: Door, context: Arc<Context>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let metrics_only = matches!(door, Door::Metrics(_));
    loop {
        tokio::select! {
            accepted = door.accept(), if door.has_room(connections.len()) => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(stream, Arc::clone(&context), metrics_only, stopped.clone()));
                }
                Err(e) => {
                    // Out of descriptors, most likely: give the others a chance to close theirs.
                    tracing::warn!(error = %e, "API connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = stopped.changed() => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: Box<dyn Stream>,
    context: Arc<Context>,
    metrics_only: bool,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move {
            let response = match metrics_only {
                true => figures(&context, &request),
                false => serve(&context, request).await,
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    if metrics_only {
        http.timer(TokioTimer::new())
            .header_read_timeout(SCRAPER_PATIENCE);
    }
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that goes away in the middle is its own affair.
        _ = connection.as_mut() => {}
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Answers a client that may see figures and nothing else; what it sends besides is not read.
fn figures(context: &Context, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let figures = Endpoint::Prometheus;
    respond(if request.uri().path() != figures.path() {
        Answer::failed(ErrorCode::NoRoute, format!("only {} is here", figures.path()))
    } else if request.method().as_str() != figures.method().as_str() {
        Answer::failed(
            ErrorCode::BadRequest,
            format!("{} is only to be read", figures.path()),
        )
    } else {
        metrics::prometheus(context)
    })
}

/// Reads a body. One that is too large is read on and thrown away for a while: most clients write all of it before
/// they look at the answer.
async fn read_body(mut body: Incoming) -> Result<Bytes, Answer> {
    let mut read = Vec::new();
    let mut thrown_away = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Answer::failed(ErrorCode::BadRequest, format!("the body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if thrown_away == 0 && read.len() + data.len() <= MAX_BODY {
            read.extend_from_slice(&data);
            continue;
        }
        thrown_away += data.len();
        if thrown_away > MAX_THROWN_AWAY {
            break;
        }
    }
    if thrown_away > 0 {
        return Err(Answer::failed(
            ErrorCode::TooLarge,
            format!("the body is larger than {MAX_BODY} bytes"),
        ));
    }
    Ok(read.into())
}

async fn serve(context: &Arc<Context>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = read_body(body).await;
    let answer = match body {
        Ok(body) => {
            handler::answer(
                context,
                head.method.as_str(),
                head.uri.path(),
                head.uri.query().unwrap_or(""),
                body,
            )
            .await
        }
        Err(answer) => answer,
    };
    if let Answer::Failed(error) = &answer {
        tracing::warn!(method = %head.method, path = head.uri.path(), code = ?error.code, message = error.message, "request refused");
    }
    respond(answer)
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut content_type = "application/json";
    let (status, body) = match answer {
        Answer::Done => (StatusCode::NO_CONTENT, None),
        Answer::Json(body) => (StatusCode::OK, Some(body)),
        Answer::Metrics(body) => {
            content_type = CONTENT_TYPE_METRICS;
            (StatusCode::OK, Some(body))
        }
        Answer::Failed(error) => {
            let status =
                StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            // Two strings always serialise.
            (status, Some(serde_json::to_string(&error).unwrap_or_default()))
        }
    };
    let mut response = Response::new(Full::from(body.unwrap_or_default()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(SERVER, HeaderValue::from_static("Nydus API"));
    if status != StatusCode::NO_CONTENT {
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
