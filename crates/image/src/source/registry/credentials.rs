//! Who asks, by docker's configuration: `auths`, `credHelpers` and `credsStore` of `config.json`.
//!
//! Never keeps what it read, and never writes. Read `auth.rs` for how credentials are used.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use super::error::{HelperProblem, RegistryError};
use super::secret::{Credentials, Secret};

/// A helper may have to ask a key ring, or a cloud.
const HELPER_DEADLINE: Duration = Duration::from_secs(20);
/// What a helper prints is one small document.
const HELPER_LIMIT_BYTES: u64 = 64 << 10;
/// Under this name Docker Hub's credentials are kept.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";
/// The user name a helper gives with an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Docker's own configuration: `config.json` in `$DOCKER_CONFIG`, or in `~/.docker`.
pub(super) fn default_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let dir = match set("DOCKER_CONFIG") {
        Some(dir) => dir.into(),
        None => Path::new(&set("HOME")?).join(".docker"),
    };
    Some(dir.join("config.json"))
}

/// Whether the file has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Required,
    Optional,
}

/// The credentials for `repository` at `host`, by the file at `path`; `None` if there are none.
pub(super) fn find(
    path: &Path,
    presence: Presence,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, RegistryError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error)
            if presence == Presence::Optional
                && matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
        {
            return Ok(None);
        }
        Err(source) => {
            return Err(RegistryError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    let malformed = || RegistryError::DockerConfig {
        path: path.to_owned(),
    };
    let config: ConfigFile = serde_json::from_slice(&text).map_err(|_| malformed())?;

    let helper = config
        .cred_helpers
        .iter()
        .find(|(key, _)| place_of(key) == host)
        .map(|(_, helper)| helper)
        .or(Some(&config.creds_store).filter(|store| !store.is_empty()));
    if let Some(helper) = helper {
        let key = if host == HUB { HUB_KEY } else { host };
        if let Some(found) = ask_helper(helper, key, HELPER_DEADLINE)? {
            return Ok(Some(found));
        }
    }
    match most_specific(config.auths, host, repository) {
        Some(entry) => entry.credentials().ok_or_else(malformed),
        None => Ok(None),
    }
}

/// What the text of a file has by itself, for the fuzz targets: no helper is asked.
pub(super) fn without_helpers(text: &[u8], host: &str, repository: &str) {
    if let Ok(config) = serde_json::from_slice::<ConfigFile>(text) {
        most_specific(config.auths, host, repository).map(Entry::credentials);
    }
}

/// As podman and skopeo have it, an entry may be for a part of a registry: `quay.io/team`.
fn most_specific(entries: HashMap<String, Entry>, host: &str, repository: &str) -> Option<Entry> {
    let full = format!("{host}/{repository}");
    let is_for = |place: &str| {
        full.strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    entries
        .into_iter()
        .filter(|(key, _)| is_for(place_of(key)))
        .max_by_key(|(key, _)| place_of(key).len())
        .map(|(_, entry)| entry)
}

/// What a key is for; it may be a URL of docker's first protocol.
fn place_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        key => key,
    }
}

impl Entry {
    /// `None` if they can't be made out; `Some(None)` if there are none.
    fn credentials(self) -> Option<Option<Credentials>> {
        if !self.identitytoken.is_empty() {
            return Some(Some(Credentials::IdentityToken(Secret::new(self.identitytoken))));
        }
        if !self.auth.is_empty() {
            let plain = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
            // Some tools pad it.
            let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
            return Some(basic(user, password));
        }
        Some(basic(&self.username, &self.password))
    }
}

fn basic(user: &str, password: &str) -> Option<Credentials> {
    (!user.is_empty()).then(|| Credentials::Basic {
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// `docker-credential-NAME get`, with the key on its standard input.
fn ask_helper(name: &str, key: &str, deadline: Duration) -> Result<Option<Credentials>, RegistryError> {
    let program = format!("docker-credential-{name}");
    let failed = |problem| RegistryError::Helper {
        program: program.clone(),
        problem,
    };
    // A name, not a path: the configuration chooses among installed helpers.
    if name.is_empty() || name.contains('/') {
        return Err(failed(HelperProblem::NotRun(io::ErrorKind::NotFound.into())));
    }
    let child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(HelperProblem::NotRun(error)))?;
    let mut helper = Helper(child);
    let output = helper.answer(key, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => failed(HelperProblem::Late(deadline.as_secs())),
        _ => failed(HelperProblem::NotRun(error)),
    })?;
    // What it printed is closed; what remains is its exit.
    let status = helper
        .0
        .wait()
        .map_err(|error| failed(HelperProblem::NotRun(error)))?;
    if !status.success() {
        // The protocol's way to say that it has none.
        if String::from_utf8_lossy(&output).contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(HelperProblem::Failed(status)));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output).map_err(|_| failed(HelperProblem::Nonsense))?;
    if answer.username == TOKEN_USER {
        return Ok(Some(Credentials::IdentityToken(Secret::new(answer.secret))));
    }
    Ok(basic(&answer.username, &answer.secret))
}

/// A helper, killed and waited for on every way out.
struct Helper(Child);

impl Helper {
    /// What it prints until it closes its output, which has to be before the deadline.
    fn answer(&mut self, key: &str, deadline: Duration) -> io::Result<Vec<u8>> {
        let until = Instant::now() + deadline;
        if let Some(mut input) = self.0.stdin.take() {
            // One that needs no input may be gone already.
            match input.write_all(key.as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        let mut bytes = Vec::new();
        let Some(mut output) = self.0.stdout.take() else {
            return Ok(bytes);
        };
        let mut piece = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let ready = poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&timeout));
            match ready {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            match output.read(&mut piece)? {
                0 => return Ok(bytes),
                got => bytes.extend_from_slice(&piece[..got]),
            }
            if bytes.len() as u64 > HELPER_LIMIT_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both do nothing to one that was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
