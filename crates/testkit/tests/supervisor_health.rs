//! Health as it shows in the status, and what an unhealthy daemon does not disturb.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::time::Duration;

use nydusbox::{Health, HealthReport, MountOutcome, Program, Sandbox, Status, StatusPhase};
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
        let program = kind(std::path::Path::new(FAKE))
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
