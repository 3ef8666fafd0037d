//! The daemon without a supervisor: spawned, asked until it answers, told to mount. Waits by spinning, which no
//! supervisor may, so that its times are the daemon's own.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{BenchError, ms};
use crate::http::{percent_encode, read_response, request};
use crate::image::{mount_body, passthrough_body};

/// Longer than any daemon takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon, killed with this value.
#[derive(Debug)]
pub(super) struct ByHand {
    child: Child,
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Spawns a daemon and mounts a share; how long until it answered, and until the share was there, in ms.
pub(super) fn start(exe: &Path, dir: &Path, share: &Path) -> Result<(f64, f64), BenchError> {
    let (vhost, api) = (dir.join("vhost.sock"), dir.join("api.sock"));
    let begun = Instant::now();
    let child = Command::new(exe)
        .args([
            "virtiofs",
            "--log-level",
            "info",
            "--rlimit-nofile",
            "0",
            "--sock",
        ])
        .arg(&vhost)
        .arg("--apisock")
        .arg(&api)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let daemon = ByHand { child };
    while request(&api, "GET", "/api/v2/daemon", None).is_err() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} does not answer", exe.display()).into());
        }
        std::hint::spin_loop();
    }
    let answers = ms(begun);
    let target = "/api/v1/mount?mountpoint=%2Fcontainers";
    let response = request(&api, "POST", target, Some(&passthrough_body(share)))?;
    if response.status != 204 {
        return Err(format!("the share is refused: {}", response.body).into());
    }
    let shares = ms(begun);
    drop(daemon);
    let _ = (std::fs::remove_file(vhost), std::fs::remove_file(api));
    Ok((answers, shares))
}

fn request_text(method: &str, at: &str, body: &str) -> String {
    format!(
        "{method} /api/v1/mount?mountpoint={} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        percent_encode(at),
        body.len()
    )
}

/// One kept connection to a daemon's API, waited for by the library's runtime: the least that a library on it costs.
#[derive(Debug)]
pub(super) struct AsyncConnection(tokio::net::UnixStream);

impl AsyncConnection {
    pub(super) async fn open(api: &Path) -> Result<Self, BenchError> {
        Ok(Self(tokio::net::UnixStream::connect(api).await?))
    }

    /// Mounts an image; the call's time in ms.
    pub(super) async fn mount(
        &mut self,
        at: &str,
        bootstrap: &Path,
        config: &str,
    ) -> Result<f64, BenchError> {
        let body = mount_body("rafs", bootstrap, config);
        let begun = Instant::now();
        self.0
            .write_all(request_text("POST", at, &body).as_bytes())
            .await?;
        let mut answer = Vec::new();
        // An answer without content ends with its headers.
        while !answer.ends_with(b"\r\n\r\n") {
            if self.0.read_buf(&mut answer).await? == 0 {
                return Err("the daemon has closed the connection".into());
            }
        }
        match answer.starts_with(b"HTTP/1.1 204") {
            true => Ok(ms(begun)),
            false => Err(String::from_utf8_lossy(&answer).into_owned().into()),
        }
    }
}

/// One kept connection to a daemon's API by an HTTP library, on the library's runtime: the call that a runtime in Rust
/// makes that has no library for the daemon.
#[derive(Debug)]
pub(super) struct HttpConnection(SendRequest<Full<Bytes>>);

impl HttpConnection {
    pub(super) async fn open(api: &Path) -> Result<Self, BenchError> {
        let socket = tokio::net::UnixStream::connect(api).await?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Mounts an image; the call's time in ms.
    pub(super) async fn mount(
        &mut self,
        at: &str,
        bootstrap: &Path,
        config: &str,
    ) -> Result<f64, BenchError> {
        let body = mount_body("rafs", bootstrap, config);
        let begun = Instant::now();
        let request = Request::post(format!("/api/v1/mount?mountpoint={}", percent_encode(at)))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::from(body))?;
        let response = self.0.send_request(request).await?;
        let status = response.status();
        let said = response.into_body().collect().await?.to_bytes();
        match status.as_u16() {
            204 => Ok(ms(begun)),
            _ => Err(String::from_utf8_lossy(&said).into_owned().into()),
        }
    }
}

/// One kept connection to a daemon's API.
#[derive(Debug)]
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn open(api: &Path) -> Result<Self, BenchError> {
        Ok(Self(BufReader::new(UnixStream::connect(api)?)))
    }

    /// Mounts an image; the call's time in ms.
    pub(super) fn mount(&mut self, at: &str, bootstrap: &Path, config: &str) -> Result<f64, BenchError> {
        let body = mount_body("rafs", bootstrap, config);
        self.call("POST", at, &body)
    }

    pub(super) fn unmount(&mut self, at: &str) -> Result<f64, BenchError> {
        self.call("DELETE", at, "")
    }

    fn call(&mut self, method: &str, at: &str, body: &str) -> Result<f64, BenchError> {
        let begun = Instant::now();
        self.0
            .get_mut()
            .write_all(request_text(method, at, body).as_bytes())?;
        let response = read_response(&mut self.0)?;
        match response.status {
            204 => Ok(ms(begun)),
            _ => Err(response.body.into()),
        }
    }
}
