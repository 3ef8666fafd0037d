//! `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, with what Docker leaves out put in.
//!
//! Pure. Which servers stand for a host is decided in `hosts.rs`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;

use crate::source::reference::ImageRefError;

/// The host that is meant when none is named.
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// OCI distribution specification 1.1, "Pulling manifests".
const MAX_TAG_BYTES: usize = 128;
const MAX_REPOSITORY_BYTES: usize = 255;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistryName {
    /// The host, with its port if one was named: `docker.io`, `127.0.0.1:5000`.
    pub host: String,
    /// The repository: `library/debian`.
    pub repository: String,
    /// The tag; `latest` if neither tag nor digest was named.
    pub tag: Option<String>,
    /// The digest, which decides if there is a tag too.
    pub digest: Option<Digest>,
}

impl RegistryName {
    /// What a manifest is asked for by: the digest, or else the tag.
    pub(super) fn manifest(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_ref(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }
}

/// Whether `host`, with or without a port, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

impl FromStr for RegistryName {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, ImageRefError> {
        // Before anything is echoed.
        if s.split('/')
            .next()
            .is_some_and(|first| first.contains('@') && s.contains('/'))
        {
            return Err(ImageRefError::Credentials);
        }
        let refused = |problem| ImageRefError::RegistryName {
            name: s.to_owned(),
            problem,
        };
        let (name, digest) = match s.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|_| refused("its digest is malformed"))?;
                (name, Some(digest))
            }
            None => (s, None),
        };
        // A colon after the last slash is a tag's, one before it a port's.
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match name[slash..].split_once(':') {
            Some((last, tag)) => (&name[..slash + last.len()], Some(tag)),
            None => (name, None),
        };
        // A first part is a host if it could not be a part of a repository's name.
        let (host, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':', '[']) || host == "localhost" => {
                (host, rest.to_owned())
            }
            Some(_) => (DEFAULT_HOST, path.to_owned()),
            None => (DEFAULT_HOST, format!("library/{path}")),
        };
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
            host => host,
        };
        if !is_host(host) {
            return Err(refused("its host is malformed"));
        }
        if repository.len() > MAX_REPOSITORY_BYTES || !repository.split('/').all(is_component) {
            return Err(refused(
                "a repository has lower-case letters, digits, and single . _ - / between them",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refused("its tag is malformed"));
        }
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG));
        Ok(Self {
            host: host.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let named = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
        }
    };
    named && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, OCI distribution specification 1.1.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = part.split(alphanumeric).filter(|run| !run.is_empty());
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && separators
            .into_iter()
            .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG_BYTES
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            (
                "index.docker.io/library/debian",
                "docker.io/library/debian:latest".to_owned(),
            ),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("localhost/app:a_B", "localhost/app:a_B".to_owned()),
            (
                "127.0.0.1:5000/library/debian:12",
                "127.0.0.1:5000/library/debian:12".to_owned(),
            ),
            (
                "[::1]:5000/a/b__c--d.e",
                "[::1]:5000/a/b__c--d.e:latest".to_owned(),
            ),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}")),
            (
                &format!("ghcr.io/a/b:1@{digest}"),
                format!("ghcr.io/a/b:1@{digest}"),
            ),
        ] {
            assert_eq!(text.parse::<RegistryName>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn malformed_names_are_refused_and_credentials_are_not_repeated() {
        for text in [
            "",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a-",
            "localhost:0/a",
            "localhost:x/a",
            "ex_ample.com/a",
            "a:",
            "a:-x",
            "a@sha256:12",
            "[::1/a",
            "a/../b",
        ] {
            assert!(text.parse::<RegistryName>().is_err(), "{text}");
        }
        let error = "user:hunter2@example.com/a".parse::<RegistryName>().unwrap_err();
        assert_eq!(error, ImageRefError::Credentials);
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("127.1.2.3", true),
            ("localhost.example.com", false),
            ("10.0.0.1:5000", false),
            ("docker.io", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }
}
