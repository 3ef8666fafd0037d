//! What a plain client sees of a genuine registry through it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::*;
use crate::registry::{Registry, RegistryOptions};

/// Larger than one piece.
const SIZE: usize = 100_000;

struct Site {
    proxy: RegistryProxy,
    digest: String,
    content: Vec<u8>,
    _registry: Registry,
}

struct Answer {
    status: u16,
    head: String,
    content: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(each, value)| each.eq_ignore_ascii_case(name).then_some(value))
    }
}

impl Site {
    /// A registry with one blob, which was pushed through the proxy. `None` where there is no registry.
    fn new() -> Option<Self> {
        let registry = Registry::start(RegistryOptions::default()).ok()?;
        let proxy = RegistryProxy::start(registry.address()).unwrap();
        let content = crate::tree::bytes(1, SIZE);
        let digest: String = Sha256::digest(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let site = Self {
            proxy,
            digest: format!("sha256:{digest}"),
            content,
            _registry: registry,
        };
        let begun = site.ask(
            "POST /v2/some/repo/blobs/uploads/ HTTP/1.1\r\nContent-Length: 0",
            b"",
        );
        let at = begun.header("location").unwrap();
        assert!(
            at.contains(&site.proxy.host()),
            "one goes on through the proxy: {at}"
        );
        let path = &at[at.find("/v2/").unwrap()..];
        let put = format!(
            "PUT {path}&digest={} HTTP/1.1\r\nContent-Length: {SIZE}",
            site.digest
        );
        assert_eq!(site.ask(&put, &site.content).status, 201);
        site.proxy.forget();
        Some(site)
    }

    fn ask(&self, request: &str, content: &[u8]) -> Answer {
        ask(&self.proxy.host(), request, content)
    }

    fn blob(&self) -> String {
        format!("/v2/some/repo/blobs/{}", self.digest)
    }

    fn get(&self, headers: &str) -> Answer {
        self.ask(&format!("GET {} HTTP/1.1{headers}", self.blob()), b"")
    }
}

fn ask(host: &str, request: &str, content: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!("{request}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(content).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let at = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8(all[..at].to_vec()).unwrap();
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        content: all[at..].to_vec(),
    }
}

#[test]
fn requests_and_bytes_are_counted_by_blob() {
    let Some(site) = Site::new() else { return };
    let whole = site.get("");
    assert!((whole.status, whole.content) == (200, site.content.clone()));
    let part = site.get("\r\nRange: bytes=10-19");
    assert!((part.status, &part.content[..]) == (206, &site.content[10..20]));
    site.ask(&format!("HEAD {} HTTP/1.1", site.blob()), b"");
    let counted = BlobCounters {
        gets: 2,
        bytes: SIZE as u64 + 10,
    };
    assert_eq!(
        site.proxy.blobs(),
        BTreeMap::from([(site.digest.clone(), counted)])
    );
    assert_eq!(site.proxy.bytes(), SIZE as u64 + 10);
    let asked = site.proxy.asked();
    let ranges: Vec<_> = asked.iter().map(|asked| asked.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=10-19"), None]);
    assert_eq!(asked[1].status, Some(206));
}

#[test]
fn each_fault_meets_as_many_requests_as_asked_and_no_others() {
    let Some(site) = Site::new() else { return };
    let fail = |fault| site.proxy.fail_next(Part::Blob, fault, 1);
    fail(Fault::CloseAfter(1000));
    fail(Fault::WrongContent);
    fail(Fault::WrongDigest);
    fail(Fault::TooShort);
    fail(Fault::TooLong);
    fail(Fault::Status {
        status: 429,
        retry_after_seconds: Some(7),
    });
    let head = site.ask(&format!("HEAD {} HTTP/1.1", site.blob()), b"");
    assert!((head.status, head.header("content-length")) == (200, Some("100000")));
    site.ask("GET /v2/ HTTP/1.1", b"");

    let cut = site.get("");
    assert_eq!(
        (cut.header("content-length"), cut.content.len()),
        (Some("100000"), 1000)
    );
    let wrong = site.get("").content;
    assert!(wrong.len() == SIZE && wrong[0] != site.content[0] && wrong[1..] == site.content[1..]);
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        site.get("").header("docker-content-digest"),
        Some(digest.as_str())
    );
    let short = site.get("");
    assert_eq!(
        (short.header("content-length"), short.content.len()),
        (Some("99999"), SIZE - 1)
    );
    let long = site.get("");
    assert_eq!(
        (long.header("content-length"), long.content.len()),
        (Some("100001"), SIZE + 1)
    );
    let often = site.get("");
    assert_eq!((often.status, often.header("retry-after")), (429, Some("7")));
    assert!(site.get("").content == site.content);
}

#[test]
fn a_token_is_good_for_its_repository_and_as_many_requests_as_it_may() {
    let Some(site) = Site::new() else { return };
    site.proxy.demand_tokens(Some(TokenRules {
        requests_per_token: 2,
        credentials: Some(("a".to_owned(), "b".to_owned())),
    }));
    let refused = site.get("");
    let challenge = refused.header("www-authenticate").unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(
        challenge,
        format!(
            "Bearer realm=\"http://{}/token\",service=\"tests\",scope=\"repository:some/repo:pull\"",
            site.proxy.host()
        )
    );
    let token = |scope: &str, credentials: &str| {
        let request =
            format!("GET /token?service=tests&scope={scope} HTTP/1.1\r\nAuthorization: Basic {credentials}");
        let answer = site.ask(&request, b"");
        let content: serde_json::Value = serde_json::from_slice(&answer.content).unwrap();
        content["token"].as_str().map(str::to_owned)
    };
    assert_eq!(token("repository:some/repo:pull", "d3Jvbmc="), None);
    let other = token("repository%3Aother%3Apull", "YTpi").unwrap();
    let right = token("repository%3Asome%2Frepo%3Apull", "YTpi").unwrap();
    let with = |token: &str| site.get(&format!("\r\nAuthorization: Bearer {token}"));
    assert!(
        with(&other)
            .header("www-authenticate")
            .unwrap()
            .contains("insufficient_scope")
    );
    assert_eq!([with(&right).status, with(&right).status], [200, 200]);
    assert!(
        with(&right)
            .header("www-authenticate")
            .unwrap()
            .contains("invalid_token")
    );
}

#[test]
fn blobs_come_from_another_origin_which_sees_what_was_sent_along() {
    let Some(site) = Site::new() else { return };
    site.proxy.redirect_blobs(true);
    let sent = site.get("\r\nAuthorization: Basic abc");
    let to = sent.header("location").unwrap();
    assert_eq!(sent.status, 307);
    let (host, path) = to.strip_prefix("http://").unwrap().split_once('/').unwrap();
    assert_ne!(host, site.proxy.host());
    assert!(ask(host, &format!("GET /{path} HTTP/1.1"), b"").content == site.content);
    let seen: Vec<_> = site
        .proxy
        .asked()
        .into_iter()
        .map(|asked| (asked.origin, asked.authorization))
        .collect();
    let basic = Some("Basic abc".to_owned());
    assert_eq!(seen, [(Origin::Registry, basic), (Origin::Storage, None)]);
    assert_eq!(site.proxy.blobs()[&site.digest].gets, 1);
}

#[test]
fn answers_are_late_and_share_the_line() {
    let Some(site) = Site::new() else { return };
    let latency = Duration::from_millis(100);
    site.proxy.set_conditions(Conditions {
        latency,
        bandwidth: Some(1_000_000),
    });
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(site.get("").content.len(), SIZE));
        }
    });
    let least = latency + Duration::from_millis(200);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
}

#[test]
fn a_genuine_client_pushes_and_pulls_through_it_with_tokens() {
    let Some(site) = Site::new() else { return };
    let Ok(skopeo) = crate::peers::require_program("skopeo") else {
        return;
    };
    site.proxy.demand_tokens(Some(TokenRules {
        requests_per_token: 100,
        credentials: None,
    }));
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let Ok(umoci) = crate::peers::require_program("umoci") else {
        return;
    };
    for args in [["init", "--layout", "layout"], ["new", "--image", "layout:of"]] {
        let status = Command::new(&umoci).args(args).current_dir(dir.path()).status();
        assert!(status.unwrap().success());
    }
    let here = format!("oci:{}:of", layout.display());
    let there = format!("docker://{}/some/image:of", site.proxy.host());
    let copy = |from: &str, to: &str| {
        let output = Command::new(&skopeo)
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
            ])
            .args([from, to])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    copy(&here, &there);
    site.proxy.redirect_blobs(true);
    copy(&there, &format!("oci:{}:back", layout.display()));
    assert!(
        site.proxy
            .asked()
            .iter()
            .any(|asked| asked.part == Part::PutManifest)
    );
    assert!(
        site.proxy
            .asked()
            .iter()
            .any(|asked| asked.origin == Origin::Storage)
    );
}
