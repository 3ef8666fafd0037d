//! Serves `control.sock`: accepts, reads bodies, hands requests to the supervisor's handler.
//!
//! Connections are served side by side. Only the user who started the sandbox can connect: the socket's mode is
//! 0600, in a directory of mode 0700.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::body::{Answer, AnswerBody};
use super::wire::{Code, ControlError};

/// The largest request body that is read. The daemon takes 1 MiB, which may double when it is written as a string.
const MAX_BODY_BYTES: usize = 4 << 20;
/// How long answers may still take when the sandbox has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Decides what a request is answered with.
pub(crate) trait Handler: Send + Sync + 'static {
    fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> impl Future<Output = Answer> + Send;
}

/// Serves until `ended` resolves, then finishes the answers under way.
pub(crate) async fn serve<T>(
    listener: UnixListener,
    handler: Arc<impl Handler>,
    ended: impl Future<Output = T>,
) -> T {
    let mut connections = JoinSet::new();
    let (closing, closed) = tokio::sync::watch::channel(false);
    tokio::pin!(ended);
    let end = loop {
        tokio::select! {
            end = &mut ended => break end,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&handler), closed.clone()));
                }
                Err(error) => {
                    // Out of descriptors, most likely: give the others a chance to close theirs.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    };
    drop(listener);
    closing.send_replace(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS, finish).await;
    end
}

async fn connection(
    stream: UnixStream,
    handler: Arc<impl Handler>,
    mut closed: tokio::sync::watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(respond(&*handler, request).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that goes away in the middle is its own affair.
        _ = connection.as_mut() => {}
        _ = closed.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn respond(handler: &impl Handler, request: Request<Incoming>) -> Response<AnswerBody> {
    let (head, body) = request.into_parts();
    let answer = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => {
            let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
            handler.answer(&head.method, path, query, body.to_bytes()).await
        }
        Err(error) if error.is::<LengthLimitError>() => Answer::Failed(ControlError::new(
            Code::TooLarge,
            format!("the body is larger than {MAX_BODY_BYTES} bytes"),
        )),
        Err(error) => Answer::Failed(ControlError::new(
            Code::BadRequest,
            format!("the body could not be read: {error}"),
        )),
    };
    if let Answer::Failed(error) = &answer {
        tracing::warn!(method = %head.method, path = head.uri.path(), code = ?error.code, message = error.message, "request refused");
    }
    answer.into_response()
}
