//! The demo's registry: Debian's docker-registry on loopback, ended with the demo, and how much it has sent.
//!
//! Clients reach it through a relay that counts. What images are in it is in `image.rs`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::json;

use crate::error::{Tail, TaskError};

const PROGRAM: &str = "docker-registry";

/// The process; killed and reaped when dropped, and by the kernel if this program ends otherwise.
#[derive(Debug)]
pub(super) struct Registry {
    child: Child,
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Registry {
    /// Starts it on what is in `dir`, and returns when it listens.
    pub(super) fn start(dir: &Path) -> Result<Self, TaskError> {
        let config = dir.join("config.yml");
        // JSON is YAML, too.
        let text = json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        fs::write(&config, text.to_string()).map_err(|source| TaskError::io("write", &config, source))?;
        let start_error = |source| TaskError::Start {
            command: PROGRAM.to_owned(),
            source,
        };
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", PROGRAM, "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start_error)?;
        let started = child.stderr.take().map(BufReader::new).map(listening);
        let (registry, output) = match started {
            Some(Ok(started)) => started,
            ended => {
                // It may have ended by itself.
                let _killed = child.kill();
                let status = child.wait().map_err(start_error)?;
                let said = ended.and_then(Result::err).unwrap_or_default();
                return Err(TaskError::Command {
                    command: PROGRAM.to_owned(),
                    status,
                    tail: Tail::of(said.as_bytes()),
                });
            }
        };
        // Or it would stand still once the pipe is full.
        thread::spawn(move || output.lines().for_each(drop));
        let sent = Arc::default();
        let relayed = relay(registry, &sent).map_err(|source| TaskError::Start {
            command: format!("relay to {PROGRAM}"),
            source,
        });
        let mut started = Self {
            child,
            address: registry,
            sent,
        };
        started.address = relayed?;
        Ok(started)
    }

    /// An image in it.
    pub(super) fn reference(&self, tag: &str) -> String {
        format!("docker://{}/library/debian:{tag}", self.address)
    }

    /// All bytes that clients were sent so far, HTTP's own included.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Reads up to the line that says where it listens; all that it said, if it ends without one.
fn listening(mut output: BufReader<ChildStderr>) -> Result<(SocketAddr, BufReader<ChildStderr>), String> {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if !output.read_line(&mut line).is_ok_and(|length| length > 0) {
            return Err(said);
        }
        let after = line.split_once("listening on ").map(|(_, after)| after);
        if let Some(address) = after.and_then(|after| after.split(['"', ',']).next()?.parse().ok()) {
            return Ok((address, output));
        }
        said.push_str(&line);
    }
}

/// Passes connections on to `to`, as long as this program lives, and counts what comes back.
fn relay(to: SocketAddr, sent: &Arc<AtomicU64>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sent = Arc::clone(sent);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let sent = Arc::clone(&sent);
            // A connection that fails is the client's to report.
            thread::spawn(move || pass(&client, to, &sent));
        }
    });
    Ok(address)
}

fn pass(client: &TcpStream, to: SocketAddr, sent: &AtomicU64) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server, &AtomicU64::new(0)));
        copy(&server, client, sent)
    })
}

/// Copies until either end is over, which is then over for the other one, too.
fn copy(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let copied = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(length) => {
                // Before it is sent: whoever has it, finds it counted.
                count.fetch_add(length as u64, Ordering::Relaxed);
                if let Err(error) = to.write_all(&buffer[..length]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    let how = if copied.is_ok() {
        Shutdown::Write
    } else {
        Shutdown::Both
    };
    // It may be closed already.
    let _shut = to.shutdown(how);
    copied
}
