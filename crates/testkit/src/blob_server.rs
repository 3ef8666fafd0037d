//! A local HTTP/1.1 server of blobs that can be slow, held back, or wrong.
//!
//! Serves `GET` with `Range` and `HEAD` for any path whose last segment is a file name in its
//! directory, with or without `sha256:` before it: that covers the `http-proxy` backend
//! (`/blobs/<id>`) and the blob path of a registry (`/v2/<repo>/blobs/sha256:<id>`).
//! One thread a connection. See [`BlobServer::hold`] for the gate.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is sent at once on a line of limited bandwidth, in bytes.
const PIECE: u64 = 16 << 10;

/// What the server has been asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// All requests.
    pub requests: u64,
    /// GET requests for data.
    pub gets: u64,
    /// Bytes of data sent.
    pub bytes: u64,
}

/// What goes wrong with the next data requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answer with this status and no data.
    Status(u16),
    /// Promise all the data, send half, close.
    Truncate,
    /// Send half of the range as if it were all that was asked for.
    Short,
}

/// What every request for data meets, until told otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Each takes at least this long.
    pub delay: Duration,
    /// And up to this much longer, differing from request to request in the same way every time.
    pub jitter: Duration,
    /// Bytes a second that all answers share.
    pub bandwidth: Option<u64>,
    /// Every so many requests, one goes wrong (the first is right).
    pub fault_every: Option<(Fault, u64)>,
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// Numbers of the requests at the gate, in the order in which they came.
    waiting: VecDeque<u64>,
    /// Requests up to this number may pass although the gate is closed.
    admitted: u64,
    /// Where each request for data begins, in the order in which they came.
    asked: Vec<u64>,
    stopping: bool,
    conditions: Conditions,
    /// When the line is free again.
    line_free: Option<Instant>,
    faults: Option<(Fault, u64)>,
    counters: Counters,
    connections: Vec<TcpStream>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a point in time; `None` if the server stops meanwhile.
    fn wait_until<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        until: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        loop {
            if state.stopping {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(state);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The server; stops, with all its connections, when dropped.
#[derive(Debug)]
pub struct BlobServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl BlobServer {
    /// Serves the files of `dir` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// What the socket said.
    pub fn start(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            dir: dir.into(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            shared,
            address,
            acceptor: Some(acceptor),
        })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it has been asked so far.
    pub fn counters(&self) -> Counters {
        self.shared.state().counters
    }

    /// Closes the gate: requests for data wait until [`Self::release`]. HEAD is answered.
    pub fn hold(&self) {
        self.shared.state().held = true;
    }

    /// Opens the gate.
    pub fn release(&self) {
        self.shared.state().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until at least `count` requests stand at the gate; false if they do not within `patience`.
    pub fn await_held(&self, count: usize, patience: Duration) -> bool {
        let state = self.shared.state();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |s| s.waiting.len() < count);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Lets the first `count` of those through that stand at the gate.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn let_through(&self, count: usize) {
        let mut state = self.shared.state();
        assert!(state.waiting.len() >= count, "fewer than {count} requests wait");
        let last = state.waiting.drain(..count).next_back();
        state.admitted = last.unwrap_or(state.admitted);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The first byte of each request for data so far, in the order in which they came.
    pub fn asked(&self) -> Vec<u64> {
        self.shared.state().asked.clone()
    }

    /// Each request for data takes at least this long.
    pub fn delay(&self, by: Duration) {
        self.shared.state().conditions.delay = by;
    }

    /// From now on every request for data meets these conditions.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.shared.state().conditions = conditions;
    }

    /// The next `count` requests for data go wrong.
    pub fn fail_next(&self, fault: Fault, count: u64) {
        self.shared.state().faults = (count > 0).then_some((fault, count));
    }
}

impl Drop for BlobServer {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stopping = true;
            for connection in &state.connections {
                // It may be closed already.
                let _closed = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Ends the accept below.
        let _woken = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _joined = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let Ok(closer) = stream.try_clone() else { continue };
        {
            let mut state = shared.state();
            if state.stopping {
                break;
            }
            state.connections.push(closer);
        }
        let shared = Arc::clone(shared);
        threads.push(thread::spawn(move || {
            // A client that goes away in the middle is its own business.
            let _end = serve(&stream, &shared);
            let _closed = stream.shutdown(Shutdown::Both);
        }));
    }
    for thread in threads {
        let _joined = thread.join();
    }
}

#[derive(Debug, Default)]
struct Asked {
    method: String,
    path: String,
    range: Option<(u64, Option<u64>)>,
}

fn read_request(from: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        range: None,
    };
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            return Ok(Some(asked));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            asked.range = parse_range(value.trim());
        }
    }
}

fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()))
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    while let Some(asked) = read_request(&mut reader)? {
        shared.state().counters.requests += 1;
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        let name = name.strip_prefix("sha256:").unwrap_or(name);
        // A bare name cannot leave the directory.
        let file = if name.is_empty() || name == ".." {
            None
        } else {
            File::open(shared.dir.join(name)).ok()
        };
        let Some(file) = file else {
            out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        if asked.method == "HEAD" {
            let size = file.metadata()?.len();
            let head = format!("HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: {size}\r\n\r\n");
            out.write_all(head.as_bytes())?;
        } else if !send_data(out, file, asked.range, shared)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits at the gate and for the delay, then says what goes wrong with this one; `None` to stop.
fn pass_gate(shared: &Shared, from: u64) -> Option<Option<Fault>> {
    let mut state = shared.state();
    state.counters.gets += 1;
    let number = state.counters.gets;
    state.asked.push(from);
    state.waiting.push_back(number);
    shared.changed.notify_all();
    while state.held && number > state.admitted && !state.stopping {
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.waiting.retain(|waiting| *waiting != number);
    let delay = state.conditions.delay + jitter(number, state.conditions.jitter);
    let mut state = shared.wait_until(state, Instant::now() + delay)?;
    if let Some((fault, left)) = state.faults.filter(|(_, left)| *left > 0) {
        state.faults = Some((fault, left - 1));
        return Some(Some(fault));
    }
    let every = state.conditions.fault_every;
    Some(every.and_then(|(fault, every)| number.is_multiple_of(every).then_some(fault)))
}

/// A share of `most` that depends on the request's number only.
fn jitter(number: u64, most: Duration) -> Duration {
    // A multiplicative hash; the upper bits are well mixed.
    let mixed = u32::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48).unwrap_or(0);
    most * mixed / 0x1_0000
}

#[expect(clippy::cast_precision_loss, reason = "a bandwidth needs no sixteen digits")]
/// Sends the file's next bytes, as fast as the line allows; how many were sent.
fn send_paced(mut out: &TcpStream, file: &mut impl Read, shared: &Shared) -> io::Result<u64> {
    let mut sent = 0;
    loop {
        let mut state = shared.state();
        let Some(bandwidth) = state.conditions.bandwidth else {
            drop(state);
            return Ok(sent + io::copy(file, &mut out)?);
        };
        // This piece occupies the line after what others are sending.
        let free = state.line_free.unwrap_or_else(Instant::now).max(Instant::now());
        let done = free + Duration::from_secs_f64(PIECE as f64 / bandwidth as f64);
        state.line_free = Some(done);
        if shared.wait_until(state, done).is_none() {
            return Ok(sent);
        }
        match io::copy(&mut file.take(PIECE), &mut out)? {
            0 => return Ok(sent),
            n => sent += n,
        }
    }
}

/// Sends a range of a file; false if the connection has to be closed.
fn send_data(
    mut out: &TcpStream,
    mut file: File,
    range: Option<(u64, Option<u64>)>,
    shared: &Shared,
) -> io::Result<bool> {
    let Some(fault) = pass_gate(shared, range.map_or(0, |(from, _)| from)) else {
        return Ok(false);
    };
    let size = file.metadata()?.len();
    let (from, to) = match range {
        Some((from, to)) => (from, to.unwrap_or(u64::MAX).min(size.saturating_sub(1))),
        None => (0, size.saturating_sub(1)),
    };
    if size == 0 || from >= size || to < from {
        let head = format!(
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
        );
        out.write_all(head.as_bytes())?;
        return Ok(true);
    }
    let mut length = to - from + 1;
    let mut promised = length;
    match fault {
        Some(Fault::Status(status)) => {
            let head = format!("HTTP/1.1 {status} Injected\r\nContent-Length: 0\r\n\r\n");
            out.write_all(head.as_bytes())?;
            return Ok(true);
        }
        Some(Fault::Truncate) => length /= 2,
        Some(Fault::Short) => {
            length /= 2;
            promised = length;
        }
        None => {}
    }
    let status = if range.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    let last = from + promised.max(1) - 1;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
         Content-Range: bytes {from}-{last}/{size}\r\nContent-Length: {promised}\r\n\r\n"
    );
    out.write_all(head.as_bytes())?;
    file.seek(SeekFrom::Start(from))?;
    let sent = send_paced(out, &mut file.take(length), shared)?;
    shared.state().counters.bytes += sent;
    Ok(promised == length)
}

/// The sizes of all blobs in a directory: what "Y MB" of an image is.
///
/// # Errors
/// What reading the directory said.
pub fn total_bytes(dir: &std::path::Path) -> io::Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

#[cfg(test)]
#[path = "blob_server_tests.rs"]
mod tests;
