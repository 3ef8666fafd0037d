//! Bodies of answers: whole, or lines of JSON that come as things happen.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::wire::ControlError;

/// What a request is answered with.
#[derive(Debug)]
pub(crate) enum Answer {
    /// 200 with one document.
    Json(String),
    /// 200 with one document a line, until there are no more.
    Lines(Lines),
    /// The status of its code.
    Failed(ControlError),
}

pub(super) type AnswerBody = Either<Full<Bytes>, Lines>;

impl Answer {
    /// 200 with this value.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        // Our bodies are structs of strings and numbers, which always serialise.
        Self::Json(serde_json::to_string(value).unwrap_or_default())
    }

    pub(super) fn into_response(self) -> Response<AnswerBody> {
        let whole = |text: String| Either::Left(Full::from(text));
        let (status, kind, body) = match self {
            Self::Json(text) => (StatusCode::OK, "application/json", whole(text)),
            Self::Lines(lines) => (StatusCode::OK, "application/x-ndjson", Either::Right(lines)),
            Self::Failed(error) => (
                StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                "application/json",
                whole(serde_json::to_string(&error).unwrap_or_default()),
            ),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

type Next<S> = Pin<Box<dyn Future<Output = Option<(String, S)>> + Send>>;

/// Lines that are made while they are sent. Who stops reading ends them: nothing runs besides the connection.
pub(crate) struct Lines(Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>);

impl Lines {
    /// Lines from a source that is asked for one after the other until it has no more.
    pub(crate) fn from_source<S, F>(source: S, next: fn(S) -> F) -> Self
    where
        S: Send + 'static,
        F: Future<Output = Option<(String, S)>> + Send + 'static,
    {
        Self(Box::pin(Unfold {
            pending: Some(Box::pin(next(source))),
            next,
        }))
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.as_mut().poll_frame(cx)
    }
}

struct Unfold<S, F> {
    pending: Option<Next<S>>,
    next: fn(S) -> F,
}

impl<S, F> Body for Unfold<S, F>
where
    S: 'static,
    F: Future<Output = Option<(String, S)>> + Send + 'static,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(pending) = &mut self.pending else {
            return Poll::Ready(None);
        };
        let item = ready!(pending.as_mut().poll(cx));
        self.pending = None;
        Poll::Ready(item.map(|(mut line, source)| {
            self.pending = Some(Box::pin((self.next)(source)));
            line.push('\n');
            Ok(Frame::data(line.into()))
        }))
    }
}
