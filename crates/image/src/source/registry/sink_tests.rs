//! What is pushed where, and what is said when it is refused; no wait takes time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Read};
use std::sync::Arc;

use serde_json::json;

use super::clock::Clock;
use super::sink::RegistrySink;
use super::test_server::{TestServer, reply};
use super::test_support::{TestClock, chain, layer, sink, sink_with};
use super::test_taker::{large, methods, put, taking};
use super::*;
use crate::source::{BlobContent, Descriptor, ImageSink, MediaType, Put, sha256_of};

#[test]
fn a_small_blob_takes_three_requests_and_one_that_is_there_one() {
    let server = taking(|_, _, _| None);
    let (sink, _) = sink(&server);
    assert_eq!(put(&sink, b"small"), Ok(Put::Written));
    let asked = server.asked();
    assert_eq!(methods(&server), ["HEAD", "POST", "PUT"]);
    assert_eq!(
        asked[0].target,
        format!("/v2/team/app/blobs/{}", sha256_of(b"small"))
    );
    assert_eq!(asked[1].target, "/v2/team/app/blobs/uploads/");
    assert_eq!(asked[2].body, b"small");
    assert_eq!(asked[2].header("content-type"), Some("application/octet-stream"));
    assert!(!asked.iter().any(|asked| asked.header("authorization").is_some()));
    assert_eq!(put(&sink, b"small"), Ok(Put::Present));
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn content_that_is_not_needed_is_not_opened() {
    struct Never;
    impl BlobContent for Never {
        fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
            panic!("opened")
        }
    }
    let server = TestServer::start(|_, _| reply(200).body("there"));
    let there = sink(&server).0.put(&layer(b"there"), &Never).unwrap();
    assert_eq!(there, Put::Present);
}

fn mounting(server: &TestServer, from: &str) -> RegistrySink {
    let from = from.replace("HOST", &server.host());
    sink_with(server, &json!({}), |options| {
        options.mount_from = Some(from.parse().unwrap());
    })
    .0
}

#[test]
fn a_blob_of_another_repository_is_taken_over_from_there() {
    let server = TestServer::start(|asked, _| reply(if asked.method == "HEAD" { 404 } else { 201 }));
    assert_eq!(put(&mounting(&server, "HOST/a/b:1"), b"x"), Ok(Put::Mounted));
    let digest = sha256_of(b"x").to_string().replace(':', "%3A");
    assert_eq!(
        server.lines()[1],
        format!("POST /v2/team/app/blobs/uploads/?mount={digest}&from=a%2Fb")
    );
}

#[test]
fn a_blob_that_cannot_be_taken_over_is_sent() {
    // One that has it not gives a session at once; one that refuses is not asked again.
    let server = taking(|_, _, _| None);
    assert_eq!(put(&mounting(&server, "HOST/a/b:1"), b"x"), Ok(Put::Written));
    assert_eq!(methods(&server), ["HEAD", "POST", "PUT"]);
    let server = taking(|asked, _, _| asked.target.contains("mount=").then(|| reply(403)));
    let sink = mounting(&server, "HOST/a/b:1");
    assert_eq!(put(&sink, b"x"), Ok(Put::Written));
    assert_eq!(put(&sink, b"y"), Ok(Put::Written));
    assert_eq!(
        methods(&server),
        ["HEAD", "POST", "POST", "PUT", "HEAD", "POST", "PUT"]
    );
    // Neither another registry's nor its own.
    for from in ["example.com/a/b", "HOST/team/app:2"] {
        let server = taking(|_, _, _| None);
        put(&mounting(&server, from), b"x").unwrap();
        assert!(
            !server.lines().iter().any(|line| line.contains("mount")),
            "{from}"
        );
    }
}

#[test]
fn a_token_is_for_both_repositories_of_a_blob_that_is_taken_over() {
    let server = TestServer::start(|asked, _| {
        if asked.target.starts_with("/token") {
            return reply(200).body(json!({"token": "t"}).to_string());
        }
        match (asked.header("authorization"), &*asked.method) {
            (None, _) => {
                let host = asked.header("host").unwrap();
                reply(401).header(
                    "WWW-Authenticate",
                    format!("Bearer realm=\"http://{host}/token\""),
                )
            }
            (Some(_), "HEAD") => reply(404),
            (Some(_), _) => reply(201),
        }
    });
    assert_eq!(put(&mounting(&server, "HOST/a/b:1"), b"x"), Ok(Put::Mounted));
    let lines = server.lines();
    let scopes = "scope=repository%3Ateam%2Fapp%3Apull%2Cpush&scope=repository%3Aa%2Fb%3Apull";
    assert!(lines.iter().any(|line| line.contains(scopes)), "{lines:?}");
}

#[test]
fn what_a_registry_refuses_is_one_sentence_and_leaves_no_session() {
    let basic = |status: u16| reply(status).header("WWW-Authenticate", "Basic realm=\"r\"");
    let scope = "Bearer realm=\"http://HOST/token\",error=\"insufficient_scope\"";
    for (method, answer, sentence) in [
        (
            "HEAD",
            reply(403),
            "registry HOST gives no permission to push to team/app",
        ),
        (
            "HEAD",
            basic(401),
            "registry HOST asks for credentials, and there are none for it in docker's config.json",
        ),
        (
            "POST",
            reply(403),
            "registry HOST gives no permission to push to team/app",
        ),
        (
            "POST",
            reply(401).header("WWW-Authenticate", scope),
            "registry HOST gives no permission to push to team/app",
        ),
        ("POST", reply(404), "registry HOST has no repository team/app"),
        (
            "PATCH",
            reply(413),
            "registry HOST refuses BLOB: a request of 4194304 bytes is too large for it",
        ),
        (
            "PATCH",
            reply(500).body(r#"{"errors":[{"code":"UNKNOWN","message":"no space left on device"}]}"#),
            "registry HOST answers BLOB with status 500: no space left on device",
        ),
        (
            "PATCH",
            reply(429).header("Retry-After", "3600"),
            "registry HOST limits how often it is asked, and asks to wait 3600 s",
        ),
        (
            "PATCH",
            reply(403),
            "registry HOST gives no permission to push to team/app",
        ),
        (
            "PUT",
            reply(201).header("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64))),
            "registry HOST says that it has stored \
             sha256:0000000000000000000000000000000000000000000000000000000000000000 instead of BLOB",
        ),
        (
            "PUT",
            reply(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest is not right"}]}"#),
            "registry HOST answers BLOB with status 400: digest is not right",
        ),
        (
            "POST",
            reply(202),
            "registry HOST answers BLOB without where to send it",
        ),
        (
            "POST",
            reply(202).header("Location", "ftp://x/"),
            "registry HOST redirects BLOB to something that is not followed",
        ),
    ] {
        let large = large();
        let server = taking(move |asked, _, _| {
            if asked.target.starts_with("/token") {
                return Some(reply(200).body(json!({"token": "t"}).to_string()));
            }
            let host = asked.header("host").unwrap();
            (asked.method == method).then(|| answer.clone().replacing("HOST", host))
        });
        let expected = sentence
            .replace("HOST", &server.host())
            .replace("BLOB", &format!("blob {} of team/app", layer(&large).digest()));
        assert_eq!(put(&sink(&server).0, &large).unwrap_err(), expected);
        let methods = methods(&server);
        let begun = methods.iter().filter(|method| *method == "PATCH").count() > 0;
        assert_eq!(methods.last().unwrap() == "DELETE", begun, "{methods:?}");
    }
}

#[test]
fn a_manifest_is_put_under_its_tag_or_digest_and_its_digest_compared() {
    let digest = sha256_of(b"{}");
    let said = digest.to_string();
    let server = TestServer::start(move |_, _| reply(201).header("Docker-Content-Digest", &*said));
    let (sink, _) = sink(&server);
    let media_type = MediaType::ImageManifest;
    assert_eq!(sink.publish(b"{}", &media_type).unwrap(), digest);
    assert_eq!(sink.put_manifest(b"{}", &media_type).unwrap(), digest);
    assert_eq!(
        server.lines(),
        [
            "PUT /v2/team/app/manifests/1".to_owned(),
            format!("PUT /v2/team/app/manifests/{digest}")
        ]
    );
    assert_eq!(
        server.asked()[0].header("content-type"),
        Some("application/vnd.oci.image.manifest.v1+json")
    );
    let sentence = chain(&sink.publish(b"{ }", &media_type).unwrap_err());
    assert_eq!(
        sentence,
        format!(
            "registry {} says that it has stored {digest} instead of manifest 1 of team/app",
            server.host()
        )
    );
}

#[test]
fn a_manifest_that_two_put_at_once_is_put_again() {
    let digest = r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}"#;
    let server = TestServer::start(move |_, before| match before {
        0 => reply(400).body(digest),
        _ => reply(201),
    });
    let (sink, clock) = sink(&server);
    sink.publish(b"{}", &MediaType::ImageManifest).unwrap();
    assert_eq!((server.asked().len(), clock.waits().len()), (2, 1));
    let server = TestServer::start(move |_, _| reply(400));
    sink_with(&server, &json!({}), |_| {})
        .0
        .publish(b"{}", &MediaType::ImageManifest)
        .unwrap_err();
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_name_to_push_to_has_a_tag() {
    let name = format!("127.0.0.1:1/a@{}", sha256_of(b"x")).parse().unwrap();
    let clock: Arc<dyn Clock> = TestClock::new();
    let error = RegistrySink::open(&name, &AccessOptions::default(), &clock).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("names a digest; what is pushed gets a tag"),
        "{error}"
    );
}

#[test]
fn a_mirror_is_pushed_to_only_if_it_is_said_to_take_it() {
    for (capabilities, to_mirror) in [
        ("", false),
        ("capabilities = [\"pull\", \"resolve\"]", false),
        ("capabilities = [\"pull\", \"push\"]", true),
    ] {
        let (server, mirror) = (taking(|_, _, _| None), taking(|_, _, _| None));
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("example.com");
        std::fs::create_dir(&own).unwrap();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n{capabilities}\n",
            server.host(),
            mirror.host()
        );
        std::fs::write(own.join("hosts.toml"), text).unwrap();
        let options = AccessOptions {
            hosts_dir: Some(dir.path().to_owned()),
            ..AccessOptions::default()
        };
        let clock: Arc<dyn Clock> = TestClock::new();
        let sink = RegistrySink::open(&"example.com/team/app:1".parse().unwrap(), &options, &clock).unwrap();
        assert_eq!(put(&sink, b"x"), Ok(Put::Written));
        assert_eq!(
            (mirror.asked().is_empty(), server.asked().is_empty()),
            (!to_mirror, to_mirror),
            "{capabilities}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("example.com")).unwrap();
    std::fs::write(
        dir.path().join("example.com/hosts.toml"),
        "capabilities = [\"pull\"]",
    )
    .unwrap();
    let options = AccessOptions {
        hosts_dir: Some(dir.path().to_owned()),
        ..AccessOptions::default()
    };
    let clock: Arc<dyn Clock> = TestClock::new();
    let error = RegistrySink::open(&"example.com/a:1".parse().unwrap(), &options, &clock).unwrap_err();
    assert_eq!(
        error.to_string(),
        "hosts.toml has no server for example.com that is pushed to"
    );
}

#[test]
fn several_blobs_are_sent_at_once() {
    // Each is answered only when all have begun.
    let barrier = std::sync::Barrier::new(3);
    let server = TestServer::start(move |asked, _| match &*asked.method {
        "HEAD" => reply(404),
        "POST" => reply(202).header("Location", "u"),
        _ => {
            barrier.wait();
            reply(201)
        }
    });
    let (sink, _) = sink(&server);
    std::thread::scope(|scope| {
        for blob in [b"a", b"b", b"c"] {
            let sink = &sink;
            scope.spawn(move || assert_eq!(put(sink, blob), Ok(Put::Written)));
        }
    });
    let descriptors: Vec<Descriptor> = [b"a", b"b", b"c"].map(|blob| layer(blob)).into();
    for descriptor in descriptors {
        let digest = descriptor.digest().to_string().replace(':', "%3A");
        assert!(server.lines().iter().any(|line| line.ends_with(&digest)));
    }
}
