//! A genuine caching HTTP proxy: nginx, with what it did in a log that can be counted.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// nginx on loopback; killed when dropped.
#[derive(Debug)]
pub struct CachingProxy {
    program: PathBuf,
    dir: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

impl CachingProxy {
    /// Starts it with its cache, log and configuration in `dir`.
    ///
    /// # Panics
    /// If it does not listen.
    pub fn start(program: &Path, dir: &Path) -> Self {
        // Free a moment ago, and nothing else here asks for a certain port.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("nginx.conf"), configuration(dir, address)).unwrap();
        let mut proxy = Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            address,
            child: None,
        };
        proxy.start_again();
        proxy
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What answers 200 as long as it lives.
    pub fn ping_url(&self) -> String {
        format!("{}/ping", self.url())
    }

    /// How many requests it has passed on or answered, pings aside.
    ///
    /// # Panics
    /// If there is no log.
    pub fn requests(&self) -> usize {
        fs::read_to_string(self.dir.join("access.log"))
            .unwrap()
            .lines()
            .count()
    }

    /// Ends it with SIGKILL.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it once more, at the same address and with what it has cached.
    ///
    /// # Panics
    /// If it does not listen.
    pub fn start_again(&mut self) {
        let child = Command::new(&self.program)
            .arg("-e")
            .arg(self.dir.join("error.log"))
            .arg("-c")
            .arg(self.dir.join("nginx.conf"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let log = || fs::read_to_string(self.dir.join("error.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "nginx does not listen: {}", log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for CachingProxy {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn configuration(dir: &Path, address: SocketAddr) -> String {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;
master_process off;
pid {dir}/pid;
events {{}}
http {{
{temporary}  proxy_cache_path {dir}/cache keys_zone=blobs:1m use_temp_path=off;
  log_format what '$request_method $http_range $upstream_cache_status';
  server {{
    listen {address};
    location = /ping {{
      access_log off;
      return 200;
    }}
    location / {{
      access_log {dir}/access.log what;
      slice 1m;
      proxy_cache blobs;
      proxy_cache_key $http_host$uri$slice_range;
      proxy_cache_valid 200 206 1h;
      proxy_set_header Range $slice_range;
      proxy_http_version 1.1;
      proxy_pass http://$http_host;
    }}
  }}
}}
"
    )
}
