//! Health as it shows in the status, and what an unhealthy daemon does not disturb.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::path::Path;
use std::time::Duration;

use nydusbox::protocol::{ContainerId, MountPoint};
use nydusbox::{
    EventItem, Health, HealthReport, MountOutcome, MountRequest, Program, Sandbox, SandboxEvent, Status,
    StatusPhase,
};
use nydusbox_testkit::image::{Image, RafsVersion, build, rafs_config_http_proxy, rafs_config_localfs};
use nydusbox_testkit::peers::{Peer, require};
use supervisor::Place;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");
const OFTEN: Duration = Duration::from_millis(20);

async fn started(place: &Place, program: Program) -> Sandbox {
    let config = place.config("s1", program).with_health_interval(Some(OFTEN));
    Sandbox::start(config.with_share(place.share()).unwrap())
        .await
        .unwrap()
}

async fn health(sandbox: &Sandbox, as_awaited: impl Fn(&HealthReport) -> bool) -> HealthReport {
    let mut status = sandbox.status();
    let awaited = status.wait_for(|status| as_awaited(&status.health));
    let found = tokio::time::timeout(Duration::from_secs(20), awaited).await;
    found.unwrap().unwrap().health.clone()
}

fn observed(report: &HealthReport) -> bool {
    !matches!(report.api, Health::Unknown { .. })
}

/// Its state was RUNNING and it took a mount, so nothing but an observation can tell.
#[tokio::test]
async fn a_daemon_that_stops_answering_is_shown_while_requests_go_on() {
    for kind in [Program::embedded, Program::stock] {
        let place = Place::new();
        let program = kind(Path::new(FAKE))
            .unwrap()
            .with_env("FAKE_DAEMON", "wedge-later");
        let sandbox = started(&place, program).await;
        let report = health(&sandbox, observed).await;
        assert!(matches!(report.api, Health::Failed { .. }), "{report:?}");
        assert!(matches!(report.backend, Health::Unknown { .. }), "{report:?}");
        assert_eq!(
            sandbox.mount(place.request("/m")).await.unwrap(),
            MountOutcome::Mounted
        );
        assert_eq!(sandbox.status().borrow().phase, StatusPhase::Serving);
        drop(sandbox.stop().await);
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_genuine_nydusd_is_well_and_what_it_cannot_tell_is_unknown() {
    let Ok(nydusd) = require(Peer::Nydusd) else { return };
    let place = Place::new();
    let sandbox = started(&place, Program::stock(nydusd).unwrap()).await;
    let report = health(&sandbox, observed).await;
    assert_eq!(report.api, Health::Ok);
    assert_eq!(report.backend, Health::Ok);
    assert!(matches!(report.in_flight, Health::Unknown { .. }), "{report:?}");
    sandbox
        .set_log_level(nydusbox::protocol::LogLevel::Trace)
        .await
        .unwrap();
    let status: Status = sandbox.status().borrow().clone();
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["health"]["api"]["state"], "ok");
    drop(sandbox.stop().await);
    place.assert_clean();
}

/// Waits until reads of blobs have failed: where, how often, and in whose words.
async fn failed_reads(sandbox: &Sandbox, at: impl Fn(Option<&MountPoint>) -> bool) -> (u64, Option<String>) {
    let mut events = sandbox.events();
    let next = async {
        loop {
            if let Some(EventItem::Record(record)) = events.next().await
                && let SandboxEvent::BackendErrors {
                    at: place,
                    count,
                    newest,
                } = record.event
                && at(place.as_ref())
            {
                return (count, newest);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.unwrap()
}

/// An image with content of its own, so that it has a blob of its own.
fn image(place: &Place, nydus_image: &Path, name: &str) -> Image {
    let source = place.path(&format!("{name}-source"));
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), name.repeat(10_000)).unwrap();
    build(nydus_image, &source, &place.path(name), RafsVersion::V6).unwrap()
}

fn at(container: &str) -> MountPoint {
    MountPoint::rafs_lowerdir(&ContainerId::new(container).unwrap())
}

/// nydusd fetches the tables of a blob when it is mounted, whoever reads it later.
#[tokio::test]
async fn blobs_that_a_genuine_nydusd_cannot_reach_are_told_of_the_image_where_it_counts() {
    let (Ok(nydusd), Ok(nydus_image)) = (require(Peer::Nydusd), require(Peer::NydusImage)) else {
        return;
    };
    let place = Place::new();
    // A port where nobody listens any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let sandbox = started(&place, Program::stock(nydusd).unwrap()).await;
    let mount = async |name: &str, config: String| {
        let image = image(&place, &nydus_image, name);
        let request = MountRequest::rafs(&ContainerId::new(name).unwrap(), image.bootstrap, config).unwrap();
        assert_eq!(sandbox.mount(request).await.unwrap(), MountOutcome::Mounted);
    };
    let unreachable =
        |name: &str| rafs_config_http_proxy(&gone.to_string(), &place.path(&format!("{name}-cache")));

    // The only one it counts for.
    mount("c1", unreachable("c1")).await;
    failed_reads(&sandbox, |place| place == Some(&at("c1"))).await;
    let report = health(&sandbox, |report| matches!(report.backend, Health::Failed { .. })).await;
    assert_eq!(report.api, Health::Ok);

    // Several, found by what is in their caches.
    let blobs = place.path("c2/blobs");
    mount("c2", rafs_config_localfs(&blobs, &place.path("c2-cache"))).await;
    mount("c3", unreachable("c3")).await;
    failed_reads(&sandbox, |place| place == Some(&at("c3"))).await;

    // Nothing tells the next ones apart: their configurations have no id.
    let nameless = |name: &str| unreachable(name).replace(r#""id":"#, r#""was":"#);
    mount("c4", nameless("c4")).await;
    mount("c5", nameless("c5")).await;
    let (_, words) = failed_reads(&sandbox, |place| place.is_none()).await;
    assert!(words.unwrap().contains(" GMT - "));
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn of_a_program_without_counters_failed_reads_are_told_in_its_own_words() {
    let place = Place::new();
    let program = Program::stock(FAKE).unwrap().with_env("FAKE_DAEMON", "uncounted");
    let sandbox = started(&place, program).await;
    let request = MountRequest::rafs(&ContainerId::new("c1").unwrap(), "/bootstrap", "{}").unwrap();
    sandbox.mount(request).await.unwrap();
    let mut told = Vec::new();
    let mut events = sandbox.events();
    while told.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(20), events.next());
        if let Some(EventItem::Record(record)) = next.await.unwrap()
            && let SandboxEvent::BackendErrors { at, count, newest } = record.event
        {
            told.push((at, count, newest.unwrap()));
        }
    }
    let expected = ["one", "two", "three"].map(|n| {
        (
            None::<MountPoint>,
            1u64,
            format!("Tue, 24 Nov 2026 05:15:17 GMT - Request({n})"),
        )
    });
    assert_eq!(told, expected);
    // Nothing new has failed: what is known is the last.
    let report = health(&sandbox, |report| {
        matches!(report.backend, Health::Unknown { .. })
    })
    .await;
    drop(sandbox.stop().await);
    let Health::Unknown { reason } = report.backend else {
        panic!()
    };
    assert!(reason.contains("/rafs/c1/lowerdir"), "{reason}");
    place.assert_clean();
}

/// A round that began while it lived ends, well so far, after it is gone.
#[tokio::test]
async fn a_daemon_that_died_while_it_was_looked_at_is_not_called_well() {
    let place = Place::new();
    let program = Program::embedded(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", "die-in-look");
    let config = place.config("s1", program).with_health_interval(Some(OFTEN));
    let sandbox = Sandbox::start(config).await.unwrap();
    sandbox.exited().await;
    health(&sandbox, |report| !observed(report)).await;
    let mut status = sandbox.status();
    // A call of a round has a second.
    let called_well = tokio::time::timeout(
        Duration::from_millis(1500),
        status.wait_for(|status| observed(&status.health)),
    );
    assert!(
        called_well.await.is_err(),
        "{:?}",
        sandbox.status().borrow().health
    );
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn nothing_is_known_of_a_daemon_that_is_gone_or_not_observed() {
    let place = Place::new();
    let program = || {
        Program::embedded(FAKE)
            .unwrap()
            .with_env("FAKE_DAEMON", "die-after-mount")
    };
    // It dies after its first mount, so it has no share.
    let config = place.config("s1", program()).with_health_interval(Some(OFTEN));
    let sandbox = Sandbox::start(config).await.unwrap();
    health(&sandbox, observed).await;
    let exited = sandbox.exited();
    let _ = sandbox.mount(place.request("/m")).await;
    exited.await;
    health(&sandbox, |report| !observed(report)).await;
    drop(sandbox.stop().await);

    let config = place.config("s2", program()).with_health_interval(None);
    let sandbox = Sandbox::start(config).await.unwrap();
    assert!(!observed(&sandbox.status().borrow().health));
    drop(sandbox.stop().await);
    place.assert_clean();
}
