//! Sends spans to a collector, from a thread of its own: OTLP over HTTP, in binary protobuf.
//!
//! Nobody waits for it. While a collector cannot be reached, spans are kept, the newest [`KEPT`] of them, and tried
//! again with those that follow; the log says once that it is so, and once that it is over.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::settings::Settings;
use super::wire::{
    ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span,
    Value,
};

/// Spans on their way to the thread.
const QUEUED: usize = 1024;
/// Spans that are kept until they can be sent: the specification's default.
const KEPT: usize = 2048;
/// How long a span waits for others to go with it.
const TOGETHER: Duration = Duration::from_secs(1);
/// How long after a failure it is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A collector's answer is a few bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

#[derive(Debug)]
enum Message {
    Span(Box<Span>),
    /// Send what there is, then answer.
    Flush(SyncSender<()>),
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(super) struct Queue(SyncSender<Message>);

impl Queue {
    /// Lost if the queue is full.
    pub(super) fn push(&self, span: Span) {
        let _: Result<(), TrySendError<_>> = self.0.try_send(Message::Span(Box::new(span)));
    }

    /// Waits until everything pushed so far has been sent or given up, `patience` at most.
    pub(super) fn flush(&self, patience: Duration) {
        let (answer, answered) = sync_channel(1);
        if self.0.try_send(Message::Flush(answer)).is_ok() {
            let _ = answered.recv_timeout(patience);
        }
    }
}

/// Starts the thread. It lives as long as the process.
pub(super) fn start(settings: Settings) -> io::Result<Queue> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (sender, receiver) = sync_channel(QUEUED);
    let exporter = Exporter {
        settings,
        runtime,
        kept: VecDeque::new(),
        due: None,
        failing: false,
    };
    std::thread::Builder::new()
        .name("otlp".to_owned())
        .spawn(move || exporter.run(&receiver))?;
    Ok(Queue(sender))
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("reach the collector")]
    Connect(#[source] io::Error),
    #[error("talk to the collector")]
    Http(#[from] hyper::Error),
    #[error("wait for the collector: no answer within {0:?}")]
    Deadline(Duration),
    #[error("export spans: the collector answers {0}")]
    Refused(StatusCode),
}

impl ExportError {
    /// Whether the same spans may be welcome later. The specification lists the statuses.
    fn passes(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Deadline(_) => true,
            Self::Refused(status) => matches!(status.as_u16(), 429 | 502..=504),
        }
    }
}

struct Exporter {
    settings: Settings,
    runtime: Runtime,
    kept: VecDeque<Span>,
    /// When to send what is kept.
    due: Option<Instant>,
    failing: bool,
}

impl Exporter {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.due {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Span(span)) => self.keep(*span),
                Ok(Message::Flush(answer)) => {
                    self.export();
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.export(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn keep(&mut self, span: Span) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(span);
        self.due.get_or_insert_with(|| Instant::now() + TOGETHER);
    }

    fn export(&mut self) {
        self.due = None;
        if self.kept.is_empty() {
            return;
        }
        let body = request(&self.settings, self.kept.iter().cloned().collect()).encode_to_vec();
        let timeout = self.settings.timeout;
        let exported = self.runtime.block_on(async {
            tokio::time::timeout(timeout, post(&self.settings, body.into()))
                .await
                .unwrap_or(Err(ExportError::Deadline(timeout)))
        });
        match exported {
            Ok(()) => {
                self.kept.clear();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("spans are exported again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "spans cannot be exported");
                }
                match error.passes() {
                    true => self.due = Some(Instant::now() + AFTER_FAILURE),
                    false => self.kept.clear(),
                }
            }
        }
    }
}

fn request(settings: &Settings, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let attribute = |(key, value): &(String, String)| KeyValue::new(key, Value::String(value.clone()));
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: settings.resource.iter().map(attribute).collect(),
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: env!("CARGO_PKG_NAME").to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans,
            }],
        }],
    }
}

/// One request on a connection of its own.
async fn post(settings: &Settings, body: Bytes) -> Result<(), ExportError> {
    let endpoint = &settings.endpoint;
    // The settings hold a URL with a host; one in brackets is an IPv6 address.
    let host = endpoint.host().unwrap_or_default();
    let address = (host.trim_matches(['[', ']']), endpoint.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(ExportError::Connect)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let exchange = exchange(settings, sender, body);
    tokio::pin!(exchange, connection);
    let status = tokio::select! {
        status = &mut exchange => status?,
        // The connection may be over before its answer has been looked at.
        ended = &mut connection => {
            ended?;
            exchange.await?
        }
    };
    match status.is_success() {
        true => Ok(()),
        false => Err(ExportError::Refused(status)),
    }
}

async fn exchange(
    settings: &Settings,
    mut sender: SendRequest<Full<Bytes>>,
    body: Bytes,
) -> Result<StatusCode, hyper::Error> {
    let endpoint = &settings.endpoint;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = endpoint
        .path_and_query()
        .map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    let (host, port) = (endpoint.host().unwrap_or_default(), endpoint.port_u16());
    let authority = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if let Ok(host) = HeaderValue::try_from(authority) {
        headers.insert(HOST, host);
    }
    headers.extend(settings.headers.iter().cloned());
    let response = sender.send_request(request).await?;
    let status = response.status();
    // Read, so that the collector does not see its answer refused. What it says is of no use to anybody.
    let _ = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await;
    Ok(status)
}
