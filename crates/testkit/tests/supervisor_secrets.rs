//! Credentials given to a daemon are in nothing the library yields, though the daemon repeats them everywhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use nydusbox::protocol::{ContainerId, SandboxId};
use nydusbox::{EventItem, MountRequest, Program, Sandbox};
use supervisor::Place;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

/// Everything this process logs, spans and their fields included, as one text.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<String>>);

impl Captured {
    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Captured {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut text = self.0.lock().unwrap();
        write!(text, "\nspan {}", attributes.metadata().name()).unwrap();
        attributes.record(&mut Fields(&mut text));
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = self.0.lock().unwrap();
        let (level, target) = (event.metadata().level(), event.metadata().target());
        write!(text, "\n{level} {target}").unwrap();
        event.record(&mut Fields(&mut text));
    }
}

/// A distinct one in every place where nydusd's configuration may have a credential, both versions.
fn configurations() -> [String; 2] {
    let connection = |n: &str| {
        serde_json::json!({
            "auth": format!("PLANTED-{n}-auth"),
            "registry_token": format!("PLANTED-{n}-token"),
            "access_key_id": format!("PLANTED-{n}-id"),
            "access_key_secret": format!("PLANTED-{n}-\"sec\\ret"),
            "proxy": {"url": format!("http://user:PLANTED-{n}-proxy@proxy:3128"),
                      "ping_url": format!("http://PLANTED-{n}-ping@proxy:3128/ping")},
        })
    };
    let v2 = serde_json::json!({
        "version": 2,
        "backend": {"type": "registry", "registry": connection("r"), "oss": connection("o"), "s3": connection("s"),
                    "http-proxy": connection("h")},
        "external_backends": [{"type": "x", "patch": {"p": "PLANTED-x-patch"}, "config": {"any": "PLANTED-x-any"}}],
        "cache": {"type": "blobcache", "filecache": {"encryption_key": "PLANTED-key"}},
    });
    let v1 = serde_json::json!({
        "device": {"backend": {"type": "registry", "config": connection("v1")}}, "mode": "direct",
    });
    [v2.to_string(), v1.to_string()]
}

#[tokio::test]
async fn planted_credentials_are_nowhere_and_operations_are_spans() {
    let captured = Captured::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(captured.clone()));
    let place = Place::new();
    let program = Program::stock(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", "echo")
        .with_env("IMAGE_PULL_AUTH", "PLANTED-env");
    let config = place.config("s1", program);
    let mut yielded = format!("{config:?}");
    let sandbox = Sandbox::start(config).await.unwrap();
    for (n, configuration) in configurations().into_iter().enumerate() {
        let container = ContainerId::new(format!("c{n}")).unwrap();
        let request = MountRequest::rafs(&container, "/bootstrap", configuration).unwrap();
        write!(yielded, "{request:?}").unwrap();
        for error in [
            sandbox
                .mount(request.clone())
                .await
                .map(drop)
                .unwrap_err()
                .to_string(),
            format!("{:?}", sandbox.mount(request.clone()).await.unwrap_err()),
            format!("{:?}", sandbox.remount(request).await),
        ] {
            writeln!(yielded, "{error}").unwrap();
        }
        yielded += &serde_json::to_string(&*sandbox.status().borrow()).unwrap();
    }
    assert!(
        yielded.contains("LoadConfig"),
        "the daemon's words are kept: {yielded}"
    );
    let refused = sandbox.mount(place.request("/m")).await.unwrap_err();
    write!(yielded, "{refused:?}").unwrap();
    let pid = i32::try_from(sandbox.status().borrow().pid).unwrap();
    let exited = sandbox.exited();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let exit = exited.await;
    assert!(
        exit.last_lines.iter().any(|l| l.contains("unfinished")),
        "{exit:?}"
    );
    write!(yielded, "{exit:?}{exit}{:?}", sandbox.status().borrow()).unwrap();
    let log = std::fs::read_to_string(place.path("state/s1/daemon.log")).unwrap();
    assert!(log.contains("INFO mount") && log.contains("***"), "{log}");
    yielded += &log;
    let mut events = sandbox.events();
    while let Some(EventItem::Record(record)) = events.try_next() {
        yielded += &serde_json::to_string(&record).unwrap();
    }
    write!(yielded, "{:?}", sandbox.stop().await).unwrap();
    write!(yielded, "{:?}", nydusbox::sweep(place.path("state"), true)).unwrap();
    let id = SandboxId::new("s2").unwrap();
    write!(yielded, "{:?}", Sandbox::adopt(place.path("state"), &id).await).unwrap();
    let log = captured.text();
    assert!(log.contains("nydusbox::daemon") && log.contains("***"), "{log}");
    yielded += &log;
    assert!(!yielded.contains("PLANTED"), "{yielded}");
    for span in [
        "start", "ready", "share", "mount", "remount", "stop", "sweep", "adopt",
    ] {
        assert!(log.contains(&format!("span {span}")), "{span}: {log}");
    }
    assert!(
        log.contains("span mount sandbox=s1 at=/rafs/c0/lowerdir"),
        "{log}"
    );
    place.assert_clean();
}
