//! The order in which the owner is asked, whoever goes away meanwhile. The test is the owner.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use nydusbox::{CallError, Health, HealthReport, StatusPhase, UnmountOutcome};
use nydusbox_protocol::{ContainerId, SandboxId, SocketPath};

use super::super::trust::Trust;
use super::*;

fn request(layer: usize) -> MountRequest {
    let container = ContainerId::new("c1").unwrap();
    MountRequest::rafs_layer(&container, layer, "/image.boot", "{}").unwrap()
}

fn status() -> Status {
    let unknown = || Health::Unknown {
        reason: String::new(),
    };
    Status {
        generation: 0,
        phase: StatusPhase::Serving,
        pid: 1,
        cgroup: None,
        program_version: String::new(),
        vmm_attached: None,
        health: HealthReport {
            api: unknown(),
            vmm: unknown(),
            backend: unknown(),
            in_flight: unknown(),
        },
        mounts: Vec::new(),
    }
}

fn desk() -> (Changes, mpsc::Receiver<Change>) {
    let socket = || SocketPath::new("/run/s").unwrap();
    let subject = Subject {
        id: SandboxId::new("s1").unwrap(),
        program: "/bin/daemon".into(),
        vhost_socket: socket(),
        api_socket: socket(),
        trust: Trust::in_sandbox("/run".as_ref()),
    };
    let (owner, changes) = mpsc::channel(16);
    let (_, status) = watch::channel(status());
    (Changes::new(Arc::new(subject), owner, status), changes)
}

/// Mounts two layers, as a client that may go away.
fn client(changes: &Changes) -> tokio::task::JoinHandle<Result<Changed, ControlError>> {
    let changes = changes.clone();
    tokio::spawn(async move {
        let requests = [1, 0].map(request);
        let at = requests[1].at().clone();
        mount(&changes, requests.into_iter(), at).await
    })
}

/// Lets everyone go on who can.
async fn others() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

/// The next change is this mount; where its answer goes.
async fn mounts(
    changes: &mut mpsc::Receiver<Change>,
    layer: usize,
) -> oneshot::Sender<Result<MountOutcome, MountError>> {
    match changes.recv().await {
        Some(Change::Mount(asked, reply)) if asked.at() == request(layer).at() => reply,
        other => panic!("{other:?}"),
    }
}

/// The next change is this unmount, and is done.
async fn unmounts(changes: &mut mpsc::Receiver<Change>, layer: usize) {
    match changes.recv().await {
        Some(Change::Unmount(at, reply)) if at == *request(layer).at() => {
            reply.send(Ok(UnmountOutcome::Unmounted)).unwrap();
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_undone_is_undone_before_the_same_is_mounted_for_another() {
    let (desk, mut changes) = desk();
    let first = client(&desk);
    let asked = mounts(&mut changes, 1).await;
    first.abort();
    let second = client(&desk);
    others().await;
    asked.send(Ok(MountOutcome::Mounted)).unwrap();
    unmounts(&mut changes, 1).await;
    for layer in [1, 0] {
        let asked = mounts(&mut changes, layer).await;
        asked.send(Ok(MountOutcome::Mounted)).unwrap();
    }
    assert_eq!(second.await.unwrap().unwrap().outcome, Outcome::Mounted);
}

/// The owner ends the sandbox: nobody waits for a turn.
#[tokio::test]
async fn who_waits_for_another_hears_at_once_that_the_sandbox_stops() {
    let (desk, mut changes) = desk();
    let first = client(&desk);
    let asked = mounts(&mut changes, 1).await;
    let second = client(&desk);
    others().await;
    drop((asked, changes));
    for client in [first, second] {
        assert_eq!(client.await.unwrap().unwrap_err().code, Code::Stopping);
    }
}

#[tokio::test]
async fn a_mount_whose_answer_was_lost_is_undone_unless_it_was_there_before() {
    let lost = || MountError::Daemon {
        at: request(0).at().clone(),
        source: CallError::TimedOut {
            after: Duration::from_secs(1),
        },
    };
    for was_there in [false, true] {
        let (mut desk, mut changes) = desk();
        let mut status = status();
        if was_there {
            status.mounts.push(nydusbox::MountStatus {
                at: request(0).at().clone(),
                fs_type: nydusbox_protocol::FsType::Rafs,
                source: String::new(),
                snapshotdir: None,
                confirmed: false,
            });
        }
        desk.status = watch::channel(status).1;
        let client = client(&desk);
        let asked = mounts(&mut changes, 1).await;
        asked.send(Ok(MountOutcome::Mounted)).unwrap();
        let asked = mounts(&mut changes, 0).await;
        asked.send(Err(lost())).unwrap();
        if !was_there {
            unmounts(&mut changes, 0).await;
        }
        unmounts(&mut changes, 1).await;
        assert_eq!(client.await.unwrap().unwrap_err().code, Code::Unreachable);
    }
}

#[test]
fn what_the_daemon_has_refused_is_not_there() {
    let refused = MountError::Daemon {
        at: request(0).at().clone(),
        source: CallError::SlotsExhausted,
    };
    assert!(!may_be_mounted(&refused));
}
