//! A blocking HTTP/1.1 client over a unix socket, on std alone.
//!
//! Deliberately not the product's client: the two read the daemon's answers independently.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An answer of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, as it came.
    pub body: String,
}

impl Response {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends one request on a connection of its own and reads the answer.
///
/// # Errors
/// What the socket said, or [`io::ErrorKind::InvalidData`] if the answer is no HTTP.
pub fn request(
    socket: &Path,
    method: &str,
    path_and_query: &str,
    body: Option<&str>,
) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path_and_query} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(body) = body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A server may answer and close before it has read all of a body it refuses.
    let sent = stream.write_all(body.unwrap_or_default().as_bytes());
    match read_response(&mut BufReader::new(stream)) {
        Ok(response) => Ok(response),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

/// Reads one answer.
///
/// # Errors
/// As [`request`].
pub fn read_response(from: &mut impl BufRead) -> io::Result<Response> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| line.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid(format!("no status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| invalid(format!("no header: {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers
        .iter()
        .find(|(n, _)| n == "content-length")
        .and_then(|(_, v)| v.parse().ok());
    let mut bytes = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut bytes)?;
    let body = String::from_utf8(bytes).map_err(|e| invalid(e.to_string()))?;
    Ok(Response {
        status,
        headers,
        body,
    })
}

/// A query value, percent-encoded: everything but letters, digits and `-._~`.
pub fn percent_encode(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
