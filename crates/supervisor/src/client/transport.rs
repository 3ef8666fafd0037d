//! HTTP/1.1 over the daemon's socket: one connection, one exchange at a time, in one write and mostly one read.
//!
//! By hand, on a parser of heads: of what a library for any server does about a mount, this needs a quarter, and a
//! mount waits for all of it. What no daemon sends (transfer codings, protocol upgrades) is refused. Dropping the
//! connection closes the socket at once.

use std::io;

use httparse::{EMPTY_HEADER, Response, Status};
use nydusbox_protocol::SocketPath;

use super::socket::{Broken, Socket};
use super::{BODY_LIMIT_BYTES, CallError};

/// The largest head that is read.
const HEAD_LIMIT_BYTES: usize = 64 << 10;
/// Daemons send five at most.
const HEADERS_MOST: usize = 64;

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

/// A connection to the daemon. One on which an exchange has failed, or was given up, must not be used again.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    /// What was read and not taken.
    read: Vec<u8>,
    /// How much of the next request is sent already.
    begun_bytes: usize,
}

/// How far a request was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Not,
    Head,
    /// The connection must not be used again.
    Broken,
}

/// A request as it is sent.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
    head_bytes: usize,
}

impl Request {
    pub(super) fn new(method: &str, target: &str, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256 + target.len() + body.len());
        for part in [method, " ", target, " HTTP/1.1\r\nhost: localhost\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        if !body.is_empty() {
            bytes.extend_from_slice(b"content-type: application/json\r\ncontent-length: ");
            bytes.extend_from_slice(body.len().to_string().as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        let head_bytes = bytes.len();
        bytes.extend_from_slice(body);
        Self { bytes, head_bytes }
    }
}

/// An answer, and whether the connection can be used again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) kept: bool,
}

impl Connection {
    pub(super) async fn open(socket: &SocketPath) -> Result<Self, ConnectFailure> {
        Ok(Self {
            socket: Socket::connect(socket).await.map_err(ConnectFailure)?,
            read: Vec::new(),
            begun_bytes: 0,
        })
    }

    /// Sends the head of a request that has a body, if nothing is in the way: what reads it gets ready, and can do
    /// nothing yet. The same request must be the next that is sent.
    pub(super) fn begin(&mut self, request: &Request) -> Begun {
        if request.head_bytes == request.bytes.len() || !self.socket.is_quiet() {
            return Begun::Not;
        }
        let head = &request.bytes[..request.head_bytes];
        match self.socket.write_at_once(head) {
            Ok(0) => Begun::Not,
            Ok(written) if written == head.len() => {
                self.begun_bytes = written;
                Begun::Head
            }
            Ok(_) | Err(_) => Begun::Broken,
        }
    }

    /// Sends a request, or the rest of it if it was begun, and reads the whole answer.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Answer, Failure> {
        // Closed, or an answer to nothing.
        if !self.socket.is_quiet() {
            return Err(Failure::NotSent);
        }
        let rest = &request.bytes[std::mem::take(&mut self.begun_bytes)..];
        // Of a request whose body was not seen, nothing was done.
        let sent = self.socket.write_all(rest).await;
        sent.map_err(|Broken { written, source }| match written {
            0 => Failure::NotSent,
            _ => Failure::Call(CallError::Unreachable { source }),
        })?;
        self.answer().await.map_err(Failure::Call)
    }

    async fn answer(&mut self) -> Result<Answer, CallError> {
        let head = loop {
            match Head::parse(&self.read)? {
                // Informational: the answer is yet to come.
                Some(head) if head.status < 200 => drop(self.read.drain(..head.len_bytes)),
                Some(head) => break head,
                None if self.read.len() > HEAD_LIMIT_BYTES => return Err(not_http("its head has no end")),
                None => self.more().await?,
            }
        };
        let end = match head.body {
            Body::Bytes(len_bytes) if len_bytes > BODY_LIMIT_BYTES => return Err(too_large()),
            Body::Bytes(len_bytes) => head.len_bytes + len_bytes,
            Body::ToTheEnd => usize::MAX,
        };
        while self.read.len() < end {
            if self.read.len() - head.len_bytes > BODY_LIMIT_BYTES {
                return Err(too_large());
            }
            match self.more().await {
                Err(CallError::Unreachable { source })
                    if head.body == Body::ToTheEnd && source.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    break;
                }
                more => more?,
            }
        }
        let mut body = self.read.split_off(head.len_bytes);
        self.read.clear();
        // More than was promised is an answer to nothing.
        let kept = head.kept && head.len_bytes + body.len() == end;
        body.truncate(end.saturating_sub(head.len_bytes));
        Ok(Answer {
            status: head.status,
            body,
            kept,
        })
    }

    async fn more(&mut self) -> Result<(), CallError> {
        let read = self.socket.read(&mut self.read).await;
        match read.map_err(|source| CallError::Unreachable { source })? {
            0 => Err(CallError::Unreachable {
                source: io::ErrorKind::UnexpectedEof.into(),
            }),
            _ => Ok(()),
        }
    }
}

/// How much belongs to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Bytes(usize),
    /// What comes until the connection is closed.
    ToTheEnd,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    len_bytes: usize,
    body: Body,
    kept: bool,
}

impl Head {
    /// Reads one; `None` while it is not whole.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, CallError> {
        let mut headers = [EMPTY_HEADER; HEADERS_MOST];
        let mut response = Response::new(&mut headers);
        let len_bytes = match response.parse(bytes) {
            Ok(Status::Complete(len_bytes)) => len_bytes,
            Ok(Status::Partial) => return Ok(None),
            Err(source) => {
                return Err(CallError::NotHttp {
                    source: source.into(),
                });
            }
        };
        let (Some(status), Some(minor)) = (response.code, response.version) else {
            return Err(not_http("it has no status"));
        };
        let (mut length, mut kept) = (None, minor == 1);
        for header in response.headers.iter() {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let told = std::str::from_utf8(value)
                    .ok()
                    .and_then(|value| value.parse().ok());
                match (told, length) {
                    (Some(told), None) => length = Some(told),
                    (Some(told), Some(before)) if told == before => {}
                    _ => return Err(not_http("its length is not one")),
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(not_http("it has a transfer coding"));
            } else if header.name.eq_ignore_ascii_case("connection") {
                kept = match () {
                    () if value.eq_ignore_ascii_case(b"close") => false,
                    () if value.eq_ignore_ascii_case(b"keep-alive") => true,
                    () => kept,
                };
            }
        }
        let body = match (status, length) {
            // These have none, whatever is said.
            (..200 | 204 | 304, _) => Body::Bytes(0),
            (_, Some(length)) => Body::Bytes(length),
            (_, None) => Body::ToTheEnd,
        };
        Ok(Some(Self {
            status,
            len_bytes,
            body,
            kept,
        }))
    }
}

fn not_http(what: &'static str) -> CallError {
    CallError::NotHttp { source: what.into() }
}

fn too_large() -> CallError {
    CallError::BodyTooLarge {
        limit_bytes: BODY_LIMIT_BYTES,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    fn nothing() -> Request {
        Request::new("GET", "/", b"")
    }

    /// What is made of an answer that comes in these pieces, after which the peer closes.
    async fn answer(pieces: &[&[u8]]) -> Result<Answer, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = SocketPath::new(dir.path().join("s")).unwrap();
        let listener = UnixListener::bind(path.as_path()).unwrap();
        let mut connection = Connection::open(&path).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let server = async move {
            let mut asked = vec![0; nothing().bytes.len()];
            peer.read_exact(&mut asked).await.unwrap();
            for piece in pieces {
                peer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let request = nothing();
        tokio::join!(connection.send(&request), server).0
    }

    fn hi(status: u16, kept: bool) -> Answer {
        Answer {
            status,
            body: b"hi".to_vec(),
            kept,
        }
    }

    #[tokio::test]
    async fn an_answer_ends_where_it_says_or_with_its_connection() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", hi(200, true)),
            (
                "HTTP/1.1 500 \r\ncontent-length:2\r\n\r\nhi and more",
                hi(500, false),
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 2\r\n\r\nhi",
                hi(200, false),
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", hi(200, false)),
            ("HTTP/1.1 200 OK\r\n\r\nhi", hi(200, false)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                hi(200, true),
            ),
        ] {
            assert_eq!(answer(&[bytes.as_bytes()]).await.unwrap(), expected, "{bytes}");
        }
        let none = "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(answer(&[none.as_bytes()]).await.unwrap().body, b"");
    }

    #[tokio::test]
    async fn what_no_daemon_sends_is_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi",
            "HTTP/1.1 2\r\n\r\n",
        ] {
            let error = answer(&[bytes.as_bytes()]).await.unwrap_err();
            assert!(
                matches!(error, Failure::Call(CallError::NotHttp { .. })),
                "{bytes}"
            );
        }
        let endless = [
            b"HTTP/1.1 200 OK\r\nx: ".as_slice(),
            &[b'x'; 2 * HEAD_LIMIT_BYTES],
        ];
        let error = answer(&endless).await.unwrap_err();
        assert!(
            matches!(error, Failure::Call(CallError::NotHttp { .. })),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_connection_on_which_something_came_uncalled_for_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = SocketPath::new(dir.path().join("s")).unwrap();
        let listener = UnixListener::bind(path.as_path()).unwrap();
        let mut connection = Connection::open(&path).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(b"HTTP/1.1 204 \r\n\r\n").await.unwrap();
        // Until the runtime has seen it.
        while connection.socket.is_quiet() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(connection.send(&nothing()).await, Err(Failure::NotSent)));
    }

    proptest! {
        /// However an answer is cut, it is the same.
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let bytes = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 2\r\n\r\nhi".as_slice();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            prop_assert_eq!(runtime.block_on(answer(&pieces)).unwrap(), hi(200, true));
        }

        #[test]
        fn any_bytes_are_a_head_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::parse(&bytes);
        }
    }
}
