//! What is pushed to servers that behave and to those that don't; no wait takes time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;

use super::clock::Clock;
use super::sink::RegistrySink;
use super::test_server::{Asked, Reply, TestServer, no_reply, reply};
use super::test_support::{TestClock, chain, content, layer, sink, sink_with};
use super::upload::PIECE_BYTES;
use super::*;
use crate::source::{BlobContent, Descriptor, ImageSink, MediaType, Put, SinkError, sha256_of};

/// A registry that takes one blob by the book.
#[derive(Default)]
struct Taker {
    /// `None` outside a session.
    taken: Option<Vec<u8>>,
    complete: Option<Vec<u8>>,
    /// Locations are another one each time.
    steps: usize,
}

impl Taker {
    fn session(&mut self, status: u16) -> Reply {
        self.steps += 1;
        let size = self.taken.as_ref().map_or(0, Vec::len);
        reply(status)
            .header("Location", format!("../uploads/u?step={}", self.steps))
            .header("Range", format!("0-{}", size.saturating_sub(1)))
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        let path = asked.target.split('?').next().unwrap();
        let in_session = path.ends_with("/blobs/uploads/u");
        if in_session && self.taken.is_none() {
            return reply(404);
        }
        if in_session && !asked.target.contains(&format!("step={}", self.steps)) {
            return reply(400);
        }
        match &*asked.method {
            "HEAD" => match &self.complete {
                Some(complete) if path.ends_with(sha256_of(complete).as_ref()) => {
                    reply(200).body(&**complete)
                }
                _ => reply(404),
            },
            "POST" => {
                self.taken = Some(Vec::new());
                self.session(202)
            }
            "GET" => self.session(204),
            "DELETE" => {
                self.taken = None;
                reply(204)
            }
            "PATCH" => {
                let taken = self.taken.as_mut().unwrap();
                let end = (taken.len() + asked.body.len()).saturating_sub(1);
                let range = format!("{}-{end}", taken.len());
                if asked.header("content-range") != Some(&*range) {
                    return reply(416);
                }
                taken.extend_from_slice(&asked.body);
                self.session(202)
            }
            "PUT" if in_session => {
                let mut taken = self.taken.take().unwrap();
                taken.extend_from_slice(&asked.body);
                let digest = sha256_of(&taken).to_string();
                if !asked.target.ends_with(&digest.replace(':', "%3A")) {
                    return reply(400);
                }
                self.complete = Some(taken);
                reply(201).header("Docker-Content-Digest", digest)
            }
            "PUT" => reply(201),
            _ => reply(405),
        }
    }
}

/// One that takes blobs by the book unless `otherwise` has another answer; it is given how many of the same kind came
/// before.
fn taking(
    otherwise: impl Fn(&Asked, usize, MutexGuard<'_, Taker>) -> Option<Reply> + Send + Sync + 'static,
) -> TestServer {
    let taker = Mutex::new(Taker::default());
    TestServer::start(move |asked, before| {
        if let Some(reply) = otherwise(asked, before, taker.lock().unwrap()) {
            return reply;
        }
        taker.lock().unwrap().answer(asked)
    })
}

fn put(sink: &RegistrySink, content: &[u8]) -> Result<Put, String> {
    sink.put(&layer(content), &content).map_err(|error| chain(&error))
}

/// Two and a half pieces.
fn large() -> Vec<u8> {
    content(PIECE_BYTES * 5 / 2)
}

fn methods(server: &TestServer) -> Vec<String> {
    server.asked().into_iter().map(|asked| asked.method).collect()
}

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

#[test]
fn a_large_blob_is_sent_piece_by_piece() {
    let server = taking(|_, _, _| None);
    let large = large();
    assert_eq!(put(&sink(&server).0, &large), Ok(Put::Written));
    assert_eq!(
        methods(&server),
        ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PUT"]
    );
    let sent: Vec<u8> = server
        .asked()
        .iter()
        .flat_map(|asked| asked.body.clone())
        .collect();
    assert!(sent == large, "nothing twice");
}

#[test]
fn a_registry_that_wants_larger_pieces_gets_them() {
    let least = (PIECE_BYTES * 2).to_string();
    let server = taking(move |asked, _, mut taker| {
        (asked.method == "POST").then(|| taker.answer(asked).header("OCI-Chunk-Min-Length", &*least))
    });
    assert_eq!(put(&sink(&server).0, &large()), Ok(Put::Written));
    assert_eq!(methods(&server), ["HEAD", "POST", "PATCH", "PATCH", "PUT"]);
}

#[test]
fn a_registry_that_takes_no_pieces_gets_all_at_once_and_is_not_asked_again() {
    let server = taking(|asked, _, _| (asked.method == "PATCH").then(|| reply(405)));
    let (sink, _) = sink(&server);
    let large = large();
    assert_eq!(put(&sink, &large), Ok(Put::Written));
    assert_eq!(
        methods(&server),
        ["HEAD", "POST", "PATCH", "DELETE", "POST", "PUT"]
    );
    assert!(server.asked()[5].body == large);
    let other = large.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    assert_eq!(put(&sink, &other), Ok(Put::Written));
    assert_eq!(methods(&server)[6..], ["HEAD", "POST", "PUT"].map(str::to_owned));
}

#[test]
fn all_at_once_is_sent_again_from_the_beginning_when_it_breaks_and_ends_with_wrong_content() {
    let server = taking(|asked, before, _| match (&*asked.method, before) {
        ("PATCH", _) => Some(reply(405)),
        ("PUT", 0) => Some(no_reply()),
        ("PUT", 1) => Some(reply(503)),
        _ => None,
    });
    let (sink, clock) = sink(&server);
    let right = large();
    assert_eq!(put(&sink, &right), Ok(Put::Written));
    assert_eq!(clock.waits().len(), 2);
    let other: Vec<_> = right.iter().map(|byte| byte ^ 1).collect();
    let mut wrong = other.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let error = sink.put(&layer(&other), &wrong).unwrap_err();
    assert!(matches!(error, SinkError::Content { .. }), "{error}");
    // The session did not come to its end: what it was sent is not the content that was announced.
    assert_eq!(methods(&server).last().unwrap(), "DELETE");
}

#[test]
fn where_a_connection_breaks_another_one_goes_on() {
    // Of the second piece the registry got a part; of the third all, but nobody heard.
    let server = taking(|asked, before, mut taker| {
        if asked.method != "PATCH" || !(before == 1 || before == 3) {
            return None;
        }
        let got = if before == 1 { 1000 } else { asked.body.len() };
        taker
            .taken
            .as_mut()
            .unwrap()
            .extend_from_slice(&asked.body[..got]);
        Some(no_reply())
    });
    let large = large();
    let (sink, clock) = sink(&server);
    assert_eq!(put(&sink, &large), Ok(Put::Written));
    assert_eq!(
        methods(&server),
        [
            "HEAD", "POST", "PATCH", "PATCH", "GET", "PATCH", "PATCH", "GET", "PUT"
        ]
    );
    let third = server.asked()[5].header("content-range").unwrap().to_owned();
    assert!(third.starts_with(&format!("{}-", PIECE_BYTES + 1000)), "{third}");
    assert_eq!(clock.waits().len(), 2);
}

#[test]
fn what_a_registry_lost_is_sent_again_from_the_beginning() {
    // It has forgotten the session, as a second process behind the same name may.
    let server = taking(|asked, before, mut taker| {
        if asked.method != "PATCH" || before != 1 {
            return None;
        }
        taker.taken = None;
        Some(reply(404))
    });
    assert_eq!(put(&sink(&server).0, &large()), Ok(Put::Written));
    assert_eq!(
        methods(&server),
        [
            "HEAD", "POST", "PATCH", "PATCH", "DELETE", "POST", "PATCH", "PATCH", "PATCH", "PUT"
        ]
    );
}

#[test]
fn a_registry_that_loses_it_every_time_is_given_up() {
    let server = taking(|asked, _, _| (asked.method == "PATCH").then(|| reply(404)));
    let (sink, clock) = sink(&server);
    let sentence = put(&sink, &large()).unwrap_err();
    assert!(
        sentence.starts_with(&format!("registry {} has no blob", server.host())),
        "{sentence}"
    );
    assert_eq!(clock.waits().len(), 4);
}

#[test]
fn an_end_that_was_not_heard_of_is_found_out() {
    let server = taking(|asked, before, mut taker| {
        if asked.method != "PUT" || before > 0 {
            return None;
        }
        taker.answer(asked);
        Some(no_reply())
    });
    assert_eq!(put(&sink(&server).0, b"small"), Ok(Put::Written));
    assert_eq!(methods(&server), ["HEAD", "POST", "PUT", "HEAD"]);
}

#[test]
fn an_end_that_failed_for_the_moment_is_tried_again_without_the_content() {
    let server = taking(|asked, before, _| (asked.method == "PUT" && before == 0).then(|| reply(503)));
    assert_eq!(put(&sink(&server).0, &large()), Ok(Put::Written));
    assert_eq!(
        methods(&server)[5..],
        ["PUT", "HEAD", "GET", "PUT"].map(str::to_owned)
    );
}

#[test]
fn a_server_that_limits_how_often_it_is_asked_is_waited_for() {
    let server = taking(|asked, before, _| {
        (asked.method == "PATCH" && before == 0).then(|| reply(429).header("Retry-After", "7"))
    });
    let (sink, clock) = sink(&server);
    assert_eq!(put(&sink, &large()), Ok(Put::Written));
    assert_eq!(clock.waits(), [std::time::Duration::from_secs(7)]);
}

#[test]
fn a_password_is_not_sent_where_the_session_is_elsewhere() {
    let elsewhere = TestServer::start(|_, _| reply(201));
    let location = format!("http://{}/there?signed=1", elsewhere.host());
    let server = TestServer::start(move |asked, _| match asked.header("authorization") {
        None => reply(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        Some(_) if asked.method == "HEAD" => reply(404),
        Some(_) => reply(202).header("Location", &*location),
    });
    let auths = json!({server.host(): {"username": "me", "password": "hunter2"}});
    let (sink, _) = sink_with(&server, &auths, |_| {});
    assert_eq!(put(&sink, b"x"), Ok(Put::Written));
    let digest = sha256_of(b"x").to_string().replace(':', "%3A");
    assert_eq!(
        elsewhere.lines(),
        [format!("PUT /there?signed=1&digest={digest}")]
    );
    assert_eq!(elsewhere.asked()[0].header("authorization"), None);
    assert!(!format!("{sink:?}").contains("hunter2"));
}

#[test]
fn a_token_for_pushing_is_renewed_in_the_middle() {
    let tokens = Mutex::new(0);
    let server = taking(move |asked, before, _| {
        let mut tokens = tokens.lock().unwrap();
        if asked.target.starts_with("/token") {
            *tokens += 1;
            return Some(reply(200).body(json!({"token": format!("t{tokens}")}).to_string()));
        }
        if asked.method == "PATCH" && before == 1 {
            // From now on the first one is too old.
            *tokens += 1;
        }
        if asked.header("authorization") == Some(&*format!("Bearer t{tokens}")) {
            return None;
        }
        let host = asked.header("host").unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
        Some(reply(401).header("WWW-Authenticate", challenge))
    });
    assert_eq!(put(&sink(&server).0, &large()), Ok(Put::Written));
    let asked: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.target.starts_with("/token"))
        .collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].target,
        "/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull%2Cpush&client_id=nydusbox"
    );
    assert!(!methods(&server).contains(&"DELETE".to_owned()));
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
fn a_server_that_is_silent_or_breaks_every_time_is_given_up() {
    let server = taking(|asked, _, _| (asked.method == "PATCH").then(no_reply));
    let (sink, clock) = sink(&server);
    let sentence = put(&sink, &large()).unwrap_err();
    assert!(
        sentence.starts_with(&format!("cannot reach registry {}: ", server.host())),
        "{sentence}"
    );
    assert_eq!(clock.waits().len(), 4);
    assert_eq!(methods(&server).last().unwrap(), "DELETE");
}

#[test]
fn content_that_is_not_the_blob_is_not_committed() {
    let server = taking(|_, _, _| None);
    let (sink, _) = sink(&server);
    let right = large();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    for wrong in [
        &wrong[..],
        &right[..right.len() - 1],
        &[&right[..], b"!"].concat(),
    ] {
        let error = sink.put(&layer(&right), &wrong).unwrap_err();
        assert!(matches!(error, SinkError::Content { .. }), "{error}");
    }
    assert!(!methods(&server).contains(&"PUT".to_owned()));
    let count = |method: &str| methods(&server).iter().filter(|each| *each == method).count();
    assert_eq!((count("POST"), count("DELETE")), (3, 3));
}

#[test]
fn who_is_stopped_cancels_the_session_and_waits_for_nothing() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    let server = taking(move |asked, before, _| {
        if asked.method == "PATCH" && before == 1 {
            stopper.store(true, Ordering::Relaxed);
        }
        None
    });
    let (sink, clock) = sink_with(&server, &json!({}), |options| options.stop = Some(stop));
    let sentence = put(&sink, &large()).unwrap_err();
    assert!(sentence.ends_with("stopped, as was asked for"), "{sentence}");
    assert_eq!(methods(&server), ["HEAD", "POST", "PATCH", "PATCH", "DELETE"]);
    assert!(clock.waits().is_empty());
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
