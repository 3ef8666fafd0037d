//! A server for tests that answers as a function says, and remembers what it was asked.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| &**value)
    }

    /// "GET /v2/".
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// An answer, and how much of its body is really sent.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    is_none: bool,
}

pub(super) fn reply(status: u16) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: Vec::new(),
        sent: usize::MAX,
        is_none: false,
    }
}

/// The connection is closed, when the request has come.
pub(super) fn no_reply() -> Reply {
    Reply {
        is_none: true,
        ..reply(0)
    }
}

impl Reply {
    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Has another text in its headers.
    pub(super) fn replacing(mut self, text: &str, with: &str) -> Self {
        for (_, value) in &mut self.headers {
            *value = value.replace(text, with);
        }
        self
    }

    /// Closes the connection after so much of the body.
    pub(super) fn cut(mut self, bytes: usize) -> Self {
        self.sent = bytes;
        self
    }
}

type Answers = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// Answers until it is dropped.
pub(super) struct TestServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl TestServer {
    /// The function is given the request, and how many with the same method and path came before.
    pub(super) fn start(answers: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answers) = (Arc::clone(&asked), Arc::new(answers));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                // A client that goes away in the middle is part of many tests.
                thread::spawn(move || serve(stream, &log, &*answers).ok());
            }
        });
        Self { address, asked }
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// What it was asked, in order.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.asked().iter().map(Asked::line).collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Asked>>, answers: &Answers) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let mut asked = Asked {
            method: words.next().unwrap_or_default().to_owned(),
            target: words.next().unwrap_or_default().to_owned(),
            ..Asked::default()
        };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            asked.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let length = asked
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        asked.body = body;
        let path = |target: &str| target.split('?').next().unwrap_or_default().to_owned();
        let before = {
            let mut log = log.lock().unwrap();
            let same =
                |other: &&Asked| other.method == asked.method && path(&other.target) == path(&asked.target);
            let before = log.iter().filter(same).count();
            log.push(asked.clone());
            before
        };
        let reply = answers(&asked, before);
        if reply.is_none {
            return stream.shutdown(Shutdown::Both);
        }
        let mut head = format!(
            "HTTP/1.1 {} x\r\nContent-Length: {}\r\n",
            reply.status,
            reply.body.len()
        );
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if asked.method != "HEAD" {
            let sent = reply.sent.min(reply.body.len());
            stream.write_all(&reply.body[..sent])?;
            if sent < reply.body.len() {
                return stream.shutdown(Shutdown::Both);
            }
        }
    }
}
