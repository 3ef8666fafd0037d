//! What a client makes of servers that behave and that don't; no wait takes time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Read as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::clock::Clock;
use super::source::RegistrySource;
use super::test_server::{Asked, Reply, TestServer, reply};
use super::test_support::{TestClock, chain, content, layer, read, source, source_with};
use super::*;
use crate::source::{BlobMismatch, ImageSource, Platform, SourceError, sha256_of};

/// What of `content` is asked for.
fn ranged(asked: &Asked, content: &[u8]) -> Reply {
    match asked
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
    {
        Some(at) => {
            let at: usize = at;
            let range = format!("bytes {at}-{}/{}", content.len() - 1, content.len());
            reply(206).header("Content-Range", range).body(&content[at..])
        }
        None => reply(200).body(content),
    }
}

#[test]
fn an_image_is_found_by_its_tag_in_an_index_and_its_blobs_by_digest() {
    let layer_content = b"layer".to_vec();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha256_of(b"x").to_string()]},
    });
    let config = config.to_string().into_bytes();
    let descriptor = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "size": content.len(), "digest": sha256_of(content).to_string()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer_content)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]})
        .to_string()
        .into_bytes();
    let by_digest: Vec<_> = [
        (&config, "blobs"),
        (&layer_content, "blobs"),
        (&manifest, "manifests"),
    ]
    .map(|(content, kind)| {
        (
            format!("/v2/team/app/{kind}/{}", sha256_of(content)),
            content.clone(),
        )
    })
    .into();
    let server = TestServer::start(move |asked, _| {
        if asked.target == "/v2/team/app/manifests/1" {
            let media_type = "application/vnd.oci.image.index.v1+json; charset=utf-8";
            return reply(200).header("Content-Type", media_type).body(&*index);
        }
        match by_digest.iter().find(|(path, _)| *path == asked.target) {
            Some((_, content)) => reply(200).body(&**content),
            None => reply(404),
        }
    });
    let (source, _) = source(&server);
    let image = source.image(&"linux/amd64".parse().unwrap()).unwrap();
    assert_eq!(image.manifest_bytes, manifest);
    assert_eq!(read(&source, &image.layers()[0]), Ok(b"layer".to_vec()));
    let error = source.image(&Platform::new("linux", "arm64", None)).unwrap_err();
    assert!(matches!(error, SourceError::NoSuchPlatform { .. }), "{error}");
}

#[test]
fn a_download_goes_on_where_its_connection_broke() {
    for ranges in [true, false] {
        let whole = content(300_000);
        let (served, blob) = (whole.clone(), layer(&whole));
        let server = TestServer::start(move |asked, before| {
            let reply = if ranges {
                ranged(asked, &served)
            } else {
                reply(200).body(&*served)
            };
            match (before, ranges) {
                (0, _) => reply.cut(100_000),
                (1, true) => reply.cut(1),
                (1, false) => reply.cut(250_000),
                _ => reply,
            }
        });
        let (source, clock) = source(&server);
        assert!(read(&source, &blob).as_ref() == Ok(&whole), "ranges: {ranges}");
        let asked: Vec<_> = server
            .asked()
            .iter()
            .map(|asked| asked.header("range").map(str::to_owned))
            .collect();
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[0], None);
        assert_eq!(clock.waits().len(), 2);
        if ranges {
            // What was read before the break is not asked for again; how much of it came is the system's matter.
            let at = |range: &Option<String>| -> usize {
                range
                    .as_ref()
                    .unwrap()
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-')
                    .parse()
                    .unwrap()
            };
            assert!(at(&asked[1]) > 0 && at(&asked[1]) <= 100_000);
            assert!(at(&asked[2]) >= at(&asked[1]));
        }
    }
}

#[test]
fn a_break_in_what_was_read_before_is_a_break_like_any_other() {
    let whole = content(300_000);
    let (served, blob) = (whole.clone(), layer(&whole));
    // It does not do ranges.
    let server = TestServer::start(move |_, before| {
        let reply = reply(200).body(&*served);
        match before {
            0 => reply.cut(200_000),
            1 => reply.cut(50_000),
            2 => reply.cut(10),
            _ => reply,
        }
    });
    let (source, clock) = source(&server);
    assert!(read(&source, &blob).as_ref() == Ok(&whole));
    assert_eq!(clock.waits().len(), 3);
}

#[test]
fn content_that_ends_in_what_was_read_before_is_not_taken() {
    let whole = content(300_000);
    let (served, blob) = (whole.clone(), layer(&whole));
    let server = TestServer::start(move |_, before| match before {
        0 => reply(200).body(&*served).cut(200_000),
        _ => reply(200).body(&served[..1000]),
    });
    let (source, clock) = source(&server);
    let sentence = read(&source, &blob).unwrap_err();
    assert!(sentence.ends_with("without what it gave before"), "{sentence}");
    assert_eq!(clock.waits().len(), 1);
}

#[test]
fn a_download_that_breaks_every_time_is_given_up() {
    let whole = content(100_000);
    let blob = layer(&whole);
    let server = TestServer::start(move |asked, _| ranged(asked, &whole).cut(10));
    let (source, clock) = source(&server);
    let sentence = read(&source, &blob).unwrap_err();
    let host = server.host();
    assert!(
        sentence.starts_with(&format!(
            "registry {host} broke off blob {} of team/app after ",
            blob.digest()
        )),
        "{sentence}"
    );
    assert_eq!(clock.waits().len(), 4);
}

#[test]
fn a_range_that_was_not_asked_for_is_not_taken() {
    let whole = content(1000);
    let blob = layer(&whole);
    let server = TestServer::start(move |_, before| match before {
        0 => reply(200).body(&*whole).cut(500),
        _ => reply(206)
            .header("Content-Range", "bytes 3-999/1000")
            .body(&whole[3..]),
    });
    let sentence = read(&source(&server).0, &blob).unwrap_err();
    assert!(
        sentence.ends_with("without the range that was asked for"),
        "{sentence}"
    );
}

#[test]
fn content_that_is_not_the_blob_is_an_error_of_its_reader() {
    for served in [&b"other"[..], b"lon", b"longer than it is"] {
        let server = TestServer::start(move |_, _| reply(200).body(served));
        let (source, _) = source(&server);
        let error = source
            .blob(&layer(b"right"))
            .unwrap()
            .read_to_end(&mut Vec::new())
            .unwrap_err();
        let mismatch = error.get_ref().unwrap().downcast_ref::<BlobMismatch>().unwrap();
        match mismatch {
            BlobMismatch::Digest { .. } => assert_eq!(served, b"other"),
            BlobMismatch::Short { .. } => assert_eq!(served, b"lon"),
            BlobMismatch::Long { .. } => assert_eq!(served, b"longer than it is"),
        }
    }
}

#[test]
fn what_a_server_refuses_is_one_sentence() {
    let toomany = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    for (answer, sentence) in [
        (reply(404), "registry HOST has no blob DIGEST of team/app"),
        (
            reply(403),
            "registry HOST denies access to blob DIGEST of team/app",
        ),
        (
            reply(401),
            "registry HOST asks for credentials in no way that is known here",
        ),
        (
            reply(401).header("WWW-Authenticate", "Basic realm=\"r\""),
            "registry HOST asks for credentials, and there are none for it in docker's config.json",
        ),
        (
            reply(429).header("Retry-After", "3600").body(toomany),
            "registry HOST limits how often it is asked, and asks to wait 3600 s",
        ),
        (
            reply(500).body(r#"{"errors":[{"code":"UNKNOWN","message":"disk\nfull"}]}"#),
            "registry HOST answers blob DIGEST of team/app with status 500: diskfull",
        ),
        (
            reply(418).body("<html>"),
            "registry HOST answers blob DIGEST of team/app with status 418",
        ),
        (
            reply(302).header("Location", "file:///etc/passwd"),
            "registry HOST redirects blob DIGEST of team/app to something that is not followed",
        ),
        (
            reply(302),
            "registry HOST redirects blob DIGEST of team/app to something that is not followed",
        ),
        (
            reply(302).header("Location", "?again"),
            "registry HOST redirects blob DIGEST of team/app more than 10 times",
        ),
    ] {
        let answer: Reply = answer;
        let blob = layer(b"x");
        let server = TestServer::start(move |_, _| answer.clone());
        let expected = sentence
            .replace("HOST", &server.host())
            .replace("DIGEST", blob.digest().as_ref());
        assert_eq!(read(&source(&server).0, &blob).unwrap_err(), expected);
    }
}

#[test]
fn a_server_that_is_down_is_asked_again_and_then_named() {
    let server = TestServer::start(|_, _| reply(200));
    let host = server.host();
    // Nobody listens on a port that was just given up.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (_, clock) = source(&server);
    let name = format!("{gone}/team/app:1").parse().unwrap();
    let options = AccessOptions {
        auth_file: None,
        hosts_dir: Some("/nonexistent".into()),
        ..AccessOptions::default()
    };
    let shared: Arc<dyn Clock> = clock.clone();
    let source = RegistrySource::open(&name, &options, &shared).unwrap();
    let sentence = chain(&source.image(&Platform::default()).unwrap_err());
    assert_eq!(
        sentence,
        format!("cannot reach registry {gone}: Connection refused (os error 111)")
    );
    assert_eq!(clock.waits().len(), 4);
    assert_ne!(host, gone.to_string());
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_forever() {
    // Accepts, by its backlog, and never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/team/app:1", mute.local_addr().unwrap())
        .parse()
        .unwrap();
    let options = AccessOptions {
        hosts_dir: Some("/nonexistent".into()),
        silence: Duration::from_millis(20),
        ..AccessOptions::default()
    };
    let clock: Arc<dyn Clock> = TestClock::new();
    let source = RegistrySource::open(&name, &options, &clock).unwrap();
    let sentence = chain(&source.image(&Platform::default()).unwrap_err());
    assert!(sentence.ends_with("no word from it for 20ms"), "{sentence}");
}

#[test]
fn what_fails_for_the_moment_is_tried_again_when_the_server_says() {
    let server = TestServer::start(|_, before| match before {
        0 => reply(429).header("Retry-After", "7"),
        1 => reply(503),
        2 => reply(500),
        _ => reply(200).body("x"),
    });
    let (source, clock) = source(&server);
    assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    assert_eq!(
        clock.waits(),
        [
            Duration::from_secs(7),
            Duration::from_millis(500),
            Duration::from_secs(1)
        ]
    );
}

#[test]
fn what_is_not_for_the_moment_is_asked_once() {
    let server = TestServer::start(|_, _| reply(404));
    read(&source(&server).0, &layer(b"x")).unwrap_err();
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_password_goes_to_the_server_that_asks_and_not_where_it_sends_to() {
    let elsewhere = TestServer::start(|_, _| reply(200).body("x"));
    let location = format!("http://{}/there?signed", elsewhere.host());
    let server = TestServer::start(move |asked, _| match asked.header("authorization") {
        Some("Basic bWU6aHVudGVyMg==") => reply(307).header("Location", &*location),
        _ => reply(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    });
    let auths = json!({server.host(): {"username": "me", "password": "hunter2"}});
    let (source, _) = source_with(&server, &auths, |_| {});
    assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    assert_eq!(elsewhere.lines(), ["GET /there?signed"]);
    assert_eq!(elsewhere.asked()[0].header("authorization"), None);
    // And the next time it is not asked for it first.
    read(&source, &layer(b"x")).unwrap();
    assert_eq!(server.asked().len(), 3);
    assert!(!format!("{source:?}").contains("hunter2"));
}

#[test]
fn a_wrong_password_is_said_to_be_one_and_not_repeated() {
    let server = TestServer::start(|_, _| reply(401).header("WWW-Authenticate", "Basic realm=\"r\""));
    let auths = json!({server.host(): {"username": "me", "password": "hunter2"}});
    let (source, _) = source_with(&server, &auths, |_| {});
    assert_eq!(
        read(&source, &layer(b"x")).unwrap_err(),
        format!("registry {} does not accept the credentials", server.host())
    );
}

/// A server of tokens `t0`, `t1`, … each of which `life` requests are answered with.
fn token_server(life: usize, expires_in: u64) -> TestServer {
    let issued = Mutex::new((0, 0));
    TestServer::start(move |asked, _| {
        let mut issued = issued.lock().unwrap();
        let (token, used) = &mut *issued;
        if asked.target.starts_with("/token") {
            *token += 1;
            *used = 0;
            let answer = json!({"token": format!("t{token}"), "expires_in": expires_in}).to_string();
            return reply(200).body(answer);
        }
        if asked.header("authorization") == Some(&*format!("Bearer t{token}")) && *used < life {
            *used += 1;
            return reply(200).body("x");
        }
        let host = asked.header("host").unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token?account=a\",service=\"reg\",scope=\"s\"");
        reply(401).header("WWW-Authenticate", challenge)
    })
}

#[test]
fn a_token_is_got_once_and_again_when_it_is_no_longer_taken() {
    let server = token_server(2, 300);
    let auths = json!({server.host(): {"username": "me", "password": "hunter2"}});
    let (source, _) = source_with(&server, &auths, |_| {});
    for _ in 0..3 {
        assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    }
    let tokens: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.target.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 2);
    assert_eq!(
        tokens[0].target,
        "/token?account=a&service=reg&scope=repository%3Ateam%2Fapp%3Apull&scope=s&client_id=nydusbox"
    );
    assert_eq!(tokens[0].header("authorization"), Some("Basic bWU6aHVudGVyMg=="));
    // 401, token, 200, 200, 401, token, 200.
    assert_eq!(server.asked().len(), 7);
}

#[test]
fn a_token_is_renewed_before_its_time_is_over() {
    let server = token_server(usize::MAX, 60);
    let (source, clock) = source(&server);
    read(&source, &layer(b"x")).unwrap();
    clock.wait(Duration::from_secs(54));
    read(&source, &layer(b"x")).unwrap();
    assert_eq!(server.asked().len(), 4);
    clock.wait(Duration::from_secs(2));
    read(&source, &layer(b"x")).unwrap();
    let lines = server.lines();
    assert!(lines[4].starts_with("GET /token"), "{lines:?}");
    assert_eq!(lines.len(), 6);
}

#[test]
fn a_token_that_is_never_taken_is_not_asked_for_without_end() {
    let server = token_server(0, 60);
    let (source, _) = source(&server);
    assert_eq!(
        read(&source, &layer(b"x")).unwrap_err(),
        format!(
            "registry {} asks for credentials, and there are none for it in docker's config.json",
            server.host()
        )
    );
    assert!(server.asked().len() <= 5);
}

#[test]
fn an_identity_token_is_changed_for_one_by_the_form_of_oauth2() {
    let server = token_server(9, 60);
    let auths = json!({server.host(): {"identitytoken": "id&token"}});
    let (source, _) = source_with(&server, &auths, |_| {});
    read(&source, &layer(b"x")).unwrap();
    let asked = server.asked();
    assert_eq!(asked[1].line(), "POST /token?account=a");
    assert_eq!(
        String::from_utf8(asked[1].body.clone()).unwrap(),
        "grant_type=refresh_token&client_id=nydusbox&service=reg&scope=repository%3Ateam%2Fapp%3Apull+s\
         &refresh_token=id%26token"
    );
}

#[test]
fn a_manifest_of_another_digest_than_asked_for_is_refused() {
    let server = TestServer::start(|_, _| reply(200).body("{}"));
    let name = format!("{}/team/app@{}", server.host(), sha256_of(b"other"));
    let options = AccessOptions {
        hosts_dir: Some("/nonexistent".into()),
        ..AccessOptions::default()
    };
    let clock: Arc<dyn Clock> = TestClock::new();
    let source = RegistrySource::open(&name.parse().unwrap(), &options, &clock).unwrap();
    match source.image(&Platform::default()).unwrap_err() {
        SourceError::Registry(error) => assert!(matches!(*error, RegistryError::WrongManifest { .. })),
        error => panic!("{error}"),
    }
}

#[test]
fn a_manifest_without_end_is_not_read_to_it() {
    let server = TestServer::start(|_, _| reply(200).body(vec![b' '; (4 << 20) + 1]));
    match source(&server).0.image(&Platform::default()).unwrap_err() {
        SourceError::Registry(error) => assert!(matches!(*error, RegistryError::TooLarge { .. })),
        error => panic!("{error}"),
    }
}

/// `hosts.toml` of a registry that is `server`, with `mirror` before it.
fn with_mirror(server: &TestServer, mirror: &str, capabilities: &str) -> (RegistrySource, tempfile::TempDir) {
    with_mirror_of(server, mirror, &format!("capabilities = [{capabilities}]"))
}

fn with_mirror_of(server: &TestServer, mirror: &str, table: &str) -> (RegistrySource, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("example.com");
    std::fs::create_dir(&own).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{mirror}\"]\n{table}\n",
        server.host()
    );
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let options = AccessOptions {
        hosts_dir: Some(dir.path().to_owned()),
        ..AccessOptions::default()
    };
    let clock: Arc<dyn Clock> = TestClock::new();
    let name = "example.com/team/app:1".parse().unwrap();
    (RegistrySource::open(&name, &options, &clock).unwrap(), dir)
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_for_what_it_lacks_or_cannot() {
    let server = TestServer::start(|_, _| reply(200).body("x"));
    let x = layer(b"x").digest().clone();
    let has_x = x.to_string();
    let mirror = TestServer::start(move |asked, _| match asked.target.contains(&has_x) {
        true => reply(200).body("x"),
        false => reply(404),
    });
    let (source, _dir) = with_mirror(&server, &mirror.host(), "\"pull\"");
    assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    assert_eq!(
        mirror.lines(),
        [format!("GET /v2/team/app/blobs/{x}?ns=example.com")]
    );
    assert!(server.asked().is_empty());
    // The mirror lacks this one, and the registry's content is another's.
    read(&source, &layer(b"y")).unwrap_err();
    assert_eq!((mirror.asked().len(), server.asked().len()), (2, 1));
    // It can't resolve tags.
    source.image(&Platform::default()).unwrap_err();
    assert_eq!(
        (mirror.asked().len(), server.lines().last().unwrap().as_str()),
        (2, "GET /v2/team/app/manifests/1")
    );
}

#[test]
fn a_mirror_below_a_path_gives_a_token_for_the_repository_by_its_own_name() {
    let server = TestServer::start(|_, _| reply(404));
    // As Harbor's proxy of another registry, which is a project of its own.
    let mirror = TestServer::start(|asked, _| {
        if asked.target.starts_with("/token") {
            let is_named = asked
                .target
                .contains("scope=repository%3Ahub%2Fteam%2Fapp%3Apull");
            return reply(200).body(json!({"token": if is_named { "good" } else { "bad" }}).to_string());
        }
        if asked.header("authorization") == Some("Bearer good") {
            return reply(200).body("x");
        }
        let host = asked.header("host").unwrap();
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",scope=\"repository:hub/team/app:pull\"");
        reply(401).header("WWW-Authenticate", challenge)
    });
    let place = format!("{}/v2/hub", mirror.host());
    let (source, _dir) = with_mirror_of(&server, &place, "override_path = true");
    assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    let x = layer(b"x").digest().clone();
    assert_eq!(
        mirror.lines().last().unwrap(),
        &format!("GET /v2/hub/team/app/blobs/{x}?ns=example.com")
    );
    assert!(server.asked().is_empty());
}

#[test]
fn a_mirror_that_is_down_is_tried_once_and_then_left_out() {
    let server = TestServer::start(|_, _| reply(200).body("x"));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (source, _dir) = with_mirror(
        &server,
        &gone.local_addr().unwrap().to_string(),
        "\"pull\", \"resolve\"",
    );
    // Connections to a listener that is closed are reset.
    drop(gone);
    for _ in 0..2 {
        assert_eq!(read(&source, &layer(b"x")), Ok(b"x".to_vec()));
    }
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn a_mirror_that_breaks_off_is_gone_on_from_the_registry() {
    let whole = content(200_000);
    let (served, at_mirror, blob) = (whole.clone(), whole.clone(), layer(&whole));
    let server = TestServer::start(move |asked, _| ranged(asked, &served));
    let mirror = TestServer::start(move |asked, _| ranged(asked, &at_mirror).cut(100_000));
    let (source, _dir) = with_mirror(&server, &mirror.host(), "\"pull\"");
    assert!(read(&source, &blob) == Ok(whole));
    assert_eq!((mirror.asked().len(), server.asked().len()), (1, 1));
    assert!(server.asked()[0].header("range").is_some());
}

#[test]
fn several_blobs_are_read_at_once() {
    let server = TestServer::start(|_, _| reply(200).body("x"));
    let source = source(&server).0;
    let mut readers: Vec<_> = (0..4).map(|_| source.blob(&layer(b"x")).unwrap()).collect();
    for reader in &mut readers {
        assert_eq!(io::read_to_string(reader).unwrap(), "x");
    }
}
