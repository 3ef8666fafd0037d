//! HTTP/1.1 over the daemon's socket: one connection, one exchange at a time.
//!
//! The connection is driven by the exchange itself, no task of its own: dropping it closes the socket at once.

use std::error::Error as _;
use std::io;
use std::pin::Pin;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nydusbox_protocol::SocketPath;

use super::socket::Socket;
use super::{BODY_LIMIT_BYTES, CallError};

type Driver = Pin<Box<http1::Connection<TokioIo<Socket>, Full<Bytes>>>>;

/// Why no connection could be made.
#[derive(Debug)]
pub(crate) struct ConnectFailure(pub(crate) io::Error);

impl From<ConnectFailure> for CallError {
    fn from(failure: ConnectFailure) -> Self {
        Self::Unreachable { source: failure.0 }
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection was closed before any of the request was written.
    NotSent,
    Call(CallError),
}

/// A connection to the daemon.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once the peer has closed.
    driver: Option<Driver>,
}

impl Connection {
    pub(super) async fn open(socket: &SocketPath) -> Result<Self, ConnectFailure> {
        let socket = Socket::connect(socket).await.map_err(ConnectFailure)?;
        let (sender, driver) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| ConnectFailure(io::Error::other(error)))?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn send(
        &mut self,
        method: &str,
        target: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "localhost");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::Call(CallError::NotHttp { source: error.into() }))?;

        let sender = &mut self.sender;
        let exchange = async {
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => {
                    return Err(match error.take_message() {
                        Some(_) => Failure::NotSent,
                        None => Failure::Call(broken(error.into_error())),
                    });
                }
            };
            let status = response.status().as_u16();
            match Limited::new(response.into_body(), BODY_LIMIT_BYTES)
                .collect()
                .await
            {
                Ok(body) => Ok((status, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Err(Failure::Call(CallError::BodyTooLarge {
                    limit_bytes: BODY_LIMIT_BYTES,
                })),
                Err(error) => Err(Failure::Call(match error.downcast::<hyper::Error>() {
                    Ok(error) => broken(*error),
                    Err(source) => CallError::NotHttp { source },
                })),
            }
        };
        tokio::pin!(exchange);
        while let Some(driver) = &mut self.driver {
            tokio::select! {
                biased;
                result = &mut exchange => return result,
                _ = driver => self.driver = None,
            }
        }
        // The driver is gone and has failed whatever it still had.
        exchange.await
    }
}

/// A hyper error as the daemon's: it broke off, or it does not speak HTTP.
fn broken(error: hyper::Error) -> CallError {
    if error.is_parse() {
        return CallError::NotHttp { source: error.into() };
    }
    let kind = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .map_or(io::ErrorKind::ConnectionReset, io::Error::kind);
    CallError::Unreachable {
        source: io::Error::new(kind, error),
    }
}
