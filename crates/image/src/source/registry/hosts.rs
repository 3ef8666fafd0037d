//! Which servers stand for a registry's host, by containerd's `hosts.toml` and docker's `certs.d`.
//!
//! Decides and reads configuration; never talks to a server. Read `endpoint.rs` for that.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::endpoint::authority;
use super::error::RegistryError;
use super::name::is_loopback;
use super::secret::Secret;
use crate::source::AccessOptions;

/// The server that stands for Docker Hub.
const HUB_SERVER: &str = "registry-1.docker.io";
const HUB: &str = "docker.io";
const HOSTS_FILE: &str = "hosts.toml";

/// What a server may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Content by digest.
    pub(super) pull: bool,
    /// A tag's digest.
    pub(super) resolve: bool,
    pub(super) push: bool,
}

impl Capabilities {
    const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
    /// Of a mirror of which nothing is said. containerd would push to it, and nobody would find that in the registry.
    const MIRROR: Self = Self {
        push: false,
        ..Self::ALL
    };
}

/// A server, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Ends in a slash; what comes after is as in the distribution specification after `/v2/`.
    pub(super) base: Url,
    pub(super) capabilities: Capabilities,
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) skip_verify: bool,
    pub(super) headers: Vec<(String, Secret)>,
    /// The registry for which this is a mirror; it has to be told.
    pub(super) mirror_of: Option<String>,
}

impl Server {
    /// The name by which docker's configuration has the credentials.
    pub(super) fn credentials_key(&self) -> String {
        let authority = authority(&self.base);
        if authority == HUB_SERVER {
            HUB.to_owned()
        } else {
            authority
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostsFile {
    host: Ordered,
    server: Option<String>,
    // What the table of a host has, for `server`.
    capabilities: Option<Vec<String>>,
    ca: Option<toml::Value>,
    client: Option<toml::Value>,
    skip_verify: bool,
    override_path: bool,
    header: Option<toml::value::Table>,
}

/// The tables `[host."…"]` in the order of the file, which is the order in which they are asked.
#[derive(Default)]
struct Ordered(Vec<(String, Table)>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<toml::Value>,
    client: Option<toml::Value>,
    skip_verify: bool,
    override_path: bool,
    header: Option<toml::value::Table>,
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tables of hosts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut tables = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tables.push(entry);
                }
                Ok(Ordered(tables))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// What the caller says beside the files.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Given<'a> {
    pub(super) ca_files: &'a [PathBuf],
    pub(super) skip_verify: bool,
    pub(super) plain_http: bool,
}

impl<'a> Given<'a> {
    pub(super) fn of(options: &'a AccessOptions) -> Self {
        Self {
            ca_files: &options.ca_files,
            skip_verify: options.skip_verify,
            plain_http: options.plain_http,
        }
    }
}

/// The servers for `host`, in the order in which they are asked; the last is the registry itself.
pub(super) fn servers(dirs: &[PathBuf], host: &str, given: Given<'_>) -> Result<Vec<Server>, RegistryError> {
    let mut ca_files = given.ca_files.to_vec();
    let mut file = None;
    for dir in dirs {
        let Some(dir) = directory_of(dir, host) else {
            continue;
        };
        let path = dir.join(HOSTS_FILE);
        match fs::read_to_string(&path) {
            Ok(text) if file.is_none() => file = Some((path, text)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => ca_files.extend(certificates(&dir)?),
            Err(source) => return Err(RegistryError::Unreadable { path, source }),
        }
    }
    let plain = given.plain_http || (is_loopback(host) && ca_files.is_empty() && !given.skip_verify);
    let scheme = if plain { "http" } else { "https" };
    let name = if host == HUB { HUB_SERVER } else { host };
    let own = format!("{scheme}://{name}");
    let common = Common {
        ca_files,
        skip_verify: given.skip_verify,
    };
    match file {
        Some((path, text)) => from_file(&path, &text, host, &own, &common),
        None => Ok(vec![server(
            &own,
            &Table::default(),
            Path::new(""),
            None,
            &common,
        )?]),
    }
}

/// What holds for every server.
struct Common {
    ca_files: Vec<PathBuf>,
    skip_verify: bool,
}

/// The directory that says something of `host`: the first of those containerd looks for that is there.
fn directory_of(dir: &Path, host: &str) -> Option<PathBuf> {
    let without_colon = host
        .rsplit_once(':')
        .map(|(name, port)| format!("{name}_{port}_"));
    let names = without_colon.as_deref().into_iter().chain([host, "_default"]);
    names.map(|name| dir.join(name)).find(|path| path.is_dir())
}

/// Docker's way: every `*.crt` of the directory is a CA.
fn certificates(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(source) => {
            return Err(RegistryError::Unreadable {
                path: dir.to_owned(),
                source,
            });
        }
    };
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .collect();
    files.sort();
    Ok(files)
}

fn from_file(
    path: &Path,
    text: &str,
    registry: &str,
    own: &str,
    common: &Common,
) -> Result<Vec<Server>, RegistryError> {
    let file: HostsFile = toml::from_str(text).map_err(|source| RegistryError::HostsFile {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut servers = Vec::new();
    for (host, table) in &file.host.0 {
        servers.push(server(&with_scheme(host), table, path, Some(registry), common)?);
    }
    let last = file.server.as_deref().map_or_else(|| own.to_owned(), with_scheme);
    let table = Table {
        capabilities: file.capabilities,
        ca: file.ca,
        client: file.client,
        skip_verify: file.skip_verify,
        override_path: file.override_path,
        header: file.header,
    };
    servers.push(server(&last, &table, path, None, common)?);
    Ok(servers)
}

/// The servers in the text of a file, for the fuzz targets.
pub(super) fn from_text(text: &str, path: &Path) {
    let common = Common {
        ca_files: Vec::new(),
        skip_verify: false,
    };
    let _ = from_file(path, text, "example.com", "https://example.com", &common);
}

fn with_scheme(host: &str) -> String {
    if host.contains("://") {
        host.to_owned()
    } else {
        format!("https://{host}")
    }
}

fn server(
    url: &str,
    table: &Table,
    path: &Path,
    mirror_of: Option<&str>,
    common: &Common,
) -> Result<Server, RegistryError> {
    let refused = |problem: String| RegistryError::HostsFileContent {
        path: path.to_owned(),
        problem,
    };
    let mut base: Url = url
        .parse()
        .map_err(|_| refused(format!("a malformed URL {url:?}")))?;
    if !matches!(base.scheme(), "http" | "https") || !base.username().is_empty() || base.password().is_some()
    {
        return Err(refused(
            "a URL that is not a plain one of http or https".to_owned(),
        ));
    }
    if table.client.is_some() {
        return Err(refused("a client certificate, which is not supported".to_owned()));
    }
    let mut own_path = base.path().trim_end_matches('/').to_owned();
    if !table.override_path && !own_path.ends_with("/v2") {
        own_path.push_str("/v2");
    }
    own_path.push('/');
    base.set_path(&own_path);

    let mut ca_files = common.ca_files.clone();
    let relative_to = path.parent().unwrap_or(Path::new(""));
    for file in texts(table.ca.as_ref()).ok_or_else(|| refused("a ca that is no path".to_owned()))? {
        ca_files.push(relative_to.join(file));
    }
    Ok(Server {
        base,
        capabilities: match &table.capabilities {
            Some(names) => capabilities(names, &refused)?,
            None if mirror_of.is_some() => Capabilities::MIRROR,
            None => Capabilities::ALL,
        },
        ca_files,
        skip_verify: table.skip_verify || common.skip_verify,
        headers: headers(table.header.as_ref(), &refused)?,
        mirror_of: mirror_of.map(str::to_owned),
    })
}

/// A text, or a list of texts; `None` if it is neither.
fn texts(value: Option<&toml::Value>) -> Option<Vec<&str>> {
    match value {
        None => Some(Vec::new()),
        Some(toml::Value::String(text)) => Some(vec![text]),
        Some(toml::Value::Array(texts)) => texts.iter().map(toml::Value::as_str).collect(),
        Some(_) => None,
    }
}

fn capabilities(
    names: &[String],
    refused: &dyn Fn(String) -> RegistryError,
) -> Result<Capabilities, RegistryError> {
    let mut capabilities = Capabilities {
        pull: false,
        resolve: false,
        push: false,
    };
    for name in names {
        match &**name {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => capabilities.push = true,
            other => return Err(refused(format!("an unknown capability {other:?}"))),
        }
    }
    Ok(capabilities)
}

/// Values are never repeated in an error: a header may be a credential.
fn headers(
    table: Option<&toml::value::Table>,
    refused: &dyn Fn(String) -> RegistryError,
) -> Result<Vec<(String, Secret)>, RegistryError> {
    let mut headers = Vec::new();
    for (name, value) in table.into_iter().flatten() {
        let problem = || {
            refused(format!(
                "a header {name:?} that is neither a text nor a list of texts"
            ))
        };
        for text in texts(Some(value)).ok_or_else(problem)? {
            headers.push((name.clone(), Secret::new(text.to_owned())));
        }
    }
    Ok(headers)
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
