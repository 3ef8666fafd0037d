//! Uploads to servers that behave and to those that don't; no wait takes time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::test_server::{TestServer, no_reply, reply};
use super::test_support::{layer, sink, sink_with};
use super::test_taker::{large, methods, put, taking};
use super::upload::PIECE_BYTES;
use crate::source::{ImageSink, Put, SinkError, sha256_of};

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
fn a_registry_that_answers_pieces_as_it_should_not_gets_all_at_once() {
    // It has no words for pieces but "bad request", or 201 and a range that stays where it was after the first one.
    let refusing = taking(|asked, _, _| (asked.method == "PATCH").then(|| reply(400)));
    let stuck = taking(|asked, before, _| {
        let has = format!("0-{}", PIECE_BYTES - 1);
        (asked.method == "PATCH" && before > 0).then(|| reply(201).header("Range", has))
    });
    for (server, pieces) in [(refusing, 1), (stuck, 2)] {
        let large = large();
        assert_eq!(put(&sink(&server).0, &large), Ok(Put::Written));
        let mut expected = vec!["HEAD", "POST"];
        expected.extend(vec!["PATCH"; pieces]);
        expected.extend(["DELETE", "POST", "PUT"]);
        assert_eq!(methods(&server), expected);
        assert!(server.asked().last().unwrap().body == large);
    }
}

#[test]
fn a_registry_that_loses_it_every_time_is_given_up() {
    let server = taking(|asked, _, _| matches!(&*asked.method, "PATCH" | "PUT").then(|| reply(404)));
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
