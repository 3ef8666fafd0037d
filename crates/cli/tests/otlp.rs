//! Spans by OTLP, told by a collector of the test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../src/otlp/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::sandboxes::{Sandboxes, kill, pid, runs, text, until};
use common::told;
use prost::Message;
use rustix::process::Signal;
use serde_json::{Value, json};
use wire::{ExportTraceServiceRequest, Span, StatusCode};

const PATIENCE: Duration = Duration::from_secs(30);
/// The caller's span.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// What a collector was sent: heads of requests, and bodies.
struct Collector {
    url: String,
    requests: Receiver<(String, Vec<u8>)>,
}

impl Collector {
    /// Accepts everything.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = channel();
        // Ends with the test's process, which is its own under the test runner.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
                let length = head
                    .lines()
                    .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                let mut body = vec![0; length.unwrap()];
                stream.read_exact(&mut body).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                if sender.send((head, body)).is_err() {
                    return;
                }
            }
        });
        Self { url, requests }
    }

    /// Everything up to the end of the sandbox, by name.
    fn spans(&self) -> (String, BTreeMap<String, Vec<Span>>) {
        let (mut all, mut spans) = (String::new(), BTreeMap::<String, Vec<Span>>::new());
        while !spans.contains_key("sandbox") {
            let (head, body) = self.requests.recv_timeout(PATIENCE).unwrap();
            all += &head;
            all += &String::from_utf8_lossy(&body);
            for resource in ExportTraceServiceRequest::decode(&*body).unwrap().resource_spans {
                let attributes = resource.resource.unwrap().attributes;
                assert_eq!(text_of(&attributes, "service.name"), "nydusbox");
                assert_eq!(text_of(&attributes, "service.instance.id"), "s1");
                for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.entry(span.name.clone()).or_default().push(span);
                }
            }
        }
        (all, spans)
    }
}

fn text_of(attributes: &[wire::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|a| a.key == key);
    match found.and_then(|a| a.value.as_ref()?.value.clone()) {
        Some(wire::Value::String(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

/// Sandboxes whose supervisors have a collector.
struct Traced {
    sandboxes: Sandboxes,
    url: String,
}

impl Traced {
    fn run(&self, args: &[&str]) -> Output {
        self.sandboxes
            .command(args)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k%201")
            .env("TRACEPARENT", format!("00-{TRACE}-{CALLER}-01"))
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {:?}", told(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn start(&self) -> Value {
        self.ok(&["start", "s1", "--share", &text(&self.sandboxes.share()), "--json"])
    }

    fn mount(&self) {
        let (bootstrap, config) = self.sandboxes.image();
        let image = ["--bootstrap", &bootstrap, "--config", &config, "--json"];
        self.ok(&[&["mount", "s1", "c1"], &image[..]].concat());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.sandboxes.state_dir().join("s1/supervisor.log")).unwrap()
    }
}

#[test]
fn a_sandboxes_spans_arrive_with_their_parents_and_without_secrets() {
    let collector = Collector::start();
    let traced = Traced {
        sandboxes: Sandboxes::new(),
        url: collector.url.clone(),
    };
    traced.start();
    traced.mount();
    let planted = traced.sandboxes.dir.join("planted.json");
    let backend = json!({"type": "registry", "registry": {"auth": "PLANTED", "registry_token": "PLANTED",
                         "scheme": "http", "host": "user:PLANTED@127.0.0.1:1", "repo": "r"}});
    std::fs::write(&planted, json!({"version": 2, "backend": backend}).to_string()).unwrap();
    let refused = traced.run(&[
        "mount",
        "s1",
        "c2",
        "--bootstrap",
        "/dev/null",
        "--config",
        &text(&planted),
    ]);
    assert_eq!(refused.status.code(), Some(1), "{:?}", told(&refused));
    traced.ok(&["stop", "s1", "--json"]);

    let (all, spans) = collector.spans();
    assert!(!all.contains("PLANTED"), "{all}");
    assert!(all.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{all}");
    assert!(all.contains("api-key: k 1\r\n") && all.contains("content-type: application/x-protobuf\r\n"));
    let one = |name: &str| match &spans[name][..] {
        [span] => span.clone(),
        several => panic!("{name}: {several:?}"),
    };
    let (life, start) = (one("sandbox"), one("start"));
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&life.parent_span_id), CALLER);
    for (child, parent) in [
        (start.clone(), &life),
        (one("stop"), &life),
        (one("ready"), &start),
        (one("share"), &start),
    ]
    .into_iter()
    .chain(spans["mount"].iter().map(|mount| (mount.clone(), &life)))
    {
        assert_eq!(child.parent_span_id, parent.span_id, "{child:?}");
    }
    for span in spans.values().flatten() {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    }
    let [good, bad] = &spans["mount"][..] else {
        panic!("{spans:?}")
    };
    for (mount, place) in [(good, "/rafs/c1/lowerdir"), (bad, "/rafs/c2/lowerdir")] {
        assert_eq!(text_of(&mount.attributes, "sandbox"), "s1");
        assert_eq!(text_of(&mount.attributes, "at"), place);
    }
    assert_eq!(good.status, None);
    let status = bad.status.clone().unwrap();
    assert_eq!(status.code, i32::from(StatusCode::Error));
    assert!(status.message.contains("/rafs/c2/lowerdir"), "{status:?}");
    traced.sandboxes.assert_nothing_left();
}

/// The collector takes connections and never says a word, so that whoever waited for it would wait a minute.
#[test]
fn a_recovery_is_a_span_in_the_callers_trace_with_the_start_of_the_other_daemon() {
    let collector = Collector::start();
    let traced = Traced {
        sandboxes: Sandboxes::new(),
        url: collector.url.clone(),
    };
    let share = text(&traced.sandboxes.share());
    let started = traced.ok(&["start", "s1", "--share", &share, "--on-exit", "restart", "--json"]);
    kill(pid(&started, "daemon"), Signal::KILL);
    let recovered = |line: &String| line.contains("\"recovered\"");
    let mut events = traced.sandboxes.command(&["events", "s1", "--follow", "--json"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| recovered(&line.unwrap())));
    events.kill().unwrap();
    events.wait().unwrap();
    traced.ok(&["stop", "s1", "--json"]);

    let (_, spans) = collector.spans();
    let [recovery] = &spans["recover"][..] else {
        panic!("{spans:?}")
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&recovery.trace_id), TRACE);
    assert_eq!(text_of(&recovery.attributes, "sandbox"), "s1");
    let of_recovery = |span: &&Span| span.parent_span_id == recovery.span_id;
    assert_eq!(spans["ready"].iter().filter(of_recovery).count(), 1, "{spans:?}");
    traced.sandboxes.assert_nothing_left();
}

#[test]
fn a_collector_that_never_answers_delays_and_fails_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let traced = Traced {
        sandboxes: Sandboxes::new(),
        url: format!("http://{}", silent.local_addr().unwrap()),
    };
    let asked = std::thread::spawn(move || silent.accept().unwrap());
    traced.start();
    traced.mount();
    // The thread that exports is stuck from here on.
    let _open = asked.join().unwrap();
    traced.ok(&["umount", "s1", "c1", "--json"]);
    traced.ok(&["stop", "s1", "--json"]);
    let again = traced.start();
    traced.ok(&["stop", "s1", "--json"]);
    let failed = traced.run(&["start", "s2", "--share", "/", "--daemon", "/bin/false"]);
    assert_eq!(failed.status.code(), Some(1), "{:?}", told(&failed));
    until("the supervisor has ended", || !runs(pid(&again, "supervisor")));
    traced.sandboxes.assert_nothing_left();
}

#[test]
fn a_collector_that_is_not_there_is_named_in_the_log_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let traced = Traced {
        sandboxes: Sandboxes::new(),
        url: format!("http://{nobody}"),
    };
    traced.start();
    let said = |log: String| log.matches("spans cannot be exported").count();
    until("the failure is in the log", || said(traced.log()) > 0);
    traced.mount();
    assert_eq!(said(traced.log()), 1, "{}", traced.log());
    traced.ok(&["stop", "s1", "--json"]);
    traced.sandboxes.assert_nothing_left();
}

#[test]
fn an_endpoint_that_cannot_be_used_is_said_in_the_log() {
    let traced = Traced {
        sandboxes: Sandboxes::new(),
        url: "https://user:PLANTED@collector".to_owned(),
    };
    traced.start();
    let log = traced.log();
    assert!(
        log.contains("OTEL_EXPORTER_OTLP_ENDPOINT: https is not built in"),
        "{log}"
    );
    assert!(!log.contains("PLANTED"), "{log}");
    traced.ok(&["stop", "s1", "--json"]);
}
