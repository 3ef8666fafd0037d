//! The HTTP API on the daemon's socket: nydusd's paths, bodies and statuses.
//!
//! Connections are served side by side and mounts run on blocking threads, so a slow mount delays no other call.
//! This file accepts and reads; `handler.rs` decides what a request means, `metrics.rs` shows counters.

mod handler;
mod metrics;
mod query;

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nydusbox_protocol::{ApiError, BuildVersion, ErrorCode};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::LogControl;
use crate::namespace::Namespace;
use crate::transport::Device;

/// The largest request body accepted, in bytes. nydusd takes 50 KiB, which some configurations exceed.
const MAX_BODY: usize = 1 << 20;

/// How much of a larger body is read before the connection is given up, in bytes.
const MAX_THROWN_AWAY: usize = 16 << 20;

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
    pub(crate) fn start(listener: StdListener, context: Arc<Context>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (stop, stopped) = watch::channel(false);
        Ok(Self {
            stop,
            task: tokio::spawn(accept(listener, context, stopped)),
        })
    }

    /// Answers what is under way, for so long at the most, and closes.
    pub(crate) async fn stop(mut self, grace: Duration) {
        let _ = self.stop.send(true);
        if tokio::time::timeout(grace, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

async fn accept(listener: UnixListener, context: Arc<Context>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let context = Arc::clone(&context);
                    let mut stopped = stopped.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |request| {
                            let context = Arc::clone(&context);
                            async move { Ok::<_, std::convert::Infallible>(serve(&context, request).await) }
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service);
                        tokio::pin!(connection);
                        tokio::select! {
                            // A client that goes away in the middle is its own affair.
                            _ = connection.as_mut() => {}
                            _ = stopped.changed() => {
                                connection.as_mut().graceful_shutdown();
                                let _ = connection.await;
                            }
                        }
                    });
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
    let (status, body) = match answer {
        Answer::Done => (StatusCode::NO_CONTENT, None),
        Answer::Json(body) => (StatusCode::OK, Some(body)),
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
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}
