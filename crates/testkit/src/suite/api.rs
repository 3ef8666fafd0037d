//! The control API: what it tells, what it mounts, what it refuses.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;

use super::fixture::{Fixture, SHARE, done, guest, refused};
use crate::image::{RafsVersion, mount_body, passthrough_body};
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

pub(super) fn tells_version_and_state(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&[]);
    let answer = daemon.api("GET", "/api/v1/daemon", None).unwrap();
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let json = answer.json();
    assert_eq!(json["state"], "RUNNING");
    for field in ["package_ver", "git_commit", "build_time", "profile", "rustc"] {
        assert!(json["version"][field].is_string(), "{field} in {json}");
    }
    assert_eq!(json["backend_collection"], serde_json::json!({}));
    Ok(())
}

pub(super) fn lists_mounts(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    done(&daemon.mount("/rafs/c1/lowerdir", &fx.local_body(&image)).unwrap());
    let json = daemon.api("GET", "/api/v1/daemon", None).unwrap().json();
    for (at, kind) in [(SHARE, "PassthroughFs"), ("/rafs/c1/lowerdir", "Rafs")] {
        let mount = &json["backend_collection"][at];
        assert_eq!(
            (&mount["backend_type"], &mount["mountpoint"]),
            (&kind.into(), &at.into()),
            "{json}"
        );
    }
    let info = daemon
        .api(
            "GET",
            "/api/v1/daemon/backend?mountpoint=%2Frafs%2Fc1%2Flowerdir",
            None,
        )
        .unwrap();
    assert_eq!(
        (info.status, info.json()["version"].as_u64()),
        (200, Some(0x600)),
        "{info:?}"
    );
    let info = daemon
        .api("GET", "/api/v1/daemon/backend?mountpoint=%2Fcontainers", None)
        .unwrap();
    refused(&info, 500);
    Ok(())
}

pub(super) fn refuses_a_second_mount(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    fs::write(fx.share().join("file"), "content").unwrap();
    let message = refused(
        &daemon.mount(SHARE, &passthrough_body(&fx.path("."))).unwrap(),
        500,
    );
    assert!(message.contains("already"), "{message}");
    assert_eq!(
        guest(&daemon).read_file(format!("{SHARE}/file")).unwrap(),
        b"content"
    );
    Ok(())
}

pub(super) fn refuses_to_unmount_nothing(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let message = refused(&daemon.umount("/rafs/none/lowerdir").unwrap(), 500);
    // nydusd does not say which.
    let named = if fx.program().is_ours() {
        "/rafs/none/lowerdir"
    } else {
        "doesn't exist"
    };
    assert!(message.contains(named), "{message}");
    Ok(())
}

pub(super) fn refuses_a_bad_configuration(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    let no_backend = r#"{"version":2,"cache":{"type":"blobcache","filecache":{"work_dir":"/tmp"}}}"#;
    for config in ["", "not JSON", "{}", no_backend, r#"{"version":7}"#] {
        let body = mount_body("rafs", &image.bootstrap, config);
        refused(&daemon.mount("/rafs/bad/lowerdir", &body).unwrap(), 500);
    }
    // Nothing of the failures is in the way of a good mount.
    done(
        &daemon
            .mount("/rafs/bad/lowerdir", &fx.local_body(&image))
            .unwrap(),
    );
    assert_eq!(
        guest(&daemon)
            .read_file("/rafs/bad/lowerdir/file-0")
            .unwrap()
            .len(),
        5000
    );
    Ok(())
}

pub(super) fn refuses_an_unknown_type(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let message = refused(
        &daemon.mount("/x", &mount_body("bogus", &fx.share(), "")).unwrap(),
        500,
    );
    assert!(message.contains("bogus"), "{message}");
    Ok(())
}

pub(super) fn refuses_a_bad_bootstrap(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    let good = fs::read(&image.bootstrap).unwrap();
    let bad = fx.path("bad-bootstrap");
    let noise = crate::tree::bytes(3, good.len());
    for content in [&b""[..], &good[..512], &good[..1100], &noise, b"#!/bin/sh\n"] {
        fs::write(&bad, content).unwrap();
        let body = mount_body("rafs", &bad, &fx.local_config(&image));
        refused(&daemon.mount("/rafs/bad/lowerdir", &body).unwrap(), 500);
    }
    let missing = mount_body("rafs", &fx.path("missing"), &fx.local_config(&image));
    refused(&daemon.mount("/rafs/bad/lowerdir", &missing).unwrap(), 500);
    assert!(daemon.is_alive());
    done(
        &daemon
            .mount("/rafs/bad/lowerdir", &fx.local_body(&image))
            .unwrap(),
    );
    Ok(())
}

pub(super) fn refuses_bad_requests(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&[]);
    let body = passthrough_body(&fx.share());
    refused(&daemon.api("POST", "/api/v1/mount", Some(&body)).unwrap(), 400);
    refused(&daemon.mount("/a", "not JSON").unwrap(), 400);
    refused(
        &daemon.mount("/a", r#"{"fs_type":"rafs","source":"/x"}"#).unwrap(),
        400,
    );
    refused(&daemon.api("GET", "/api/v1/no/such/thing", None).unwrap(), 404);
    refused(&daemon.api("DELETE", "/api/v1/daemon", None).unwrap(), 400);
    refused(&daemon.api("GET", "/api/v1/metrics?id=none", None).unwrap(), 404);
    assert_eq!(daemon.api("GET", "/api/v1/daemon", None).unwrap().status, 200);
    Ok(())
}

pub(super) fn unmounts_and_mounts_again(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    for _round in 0..5 {
        done(&daemon.mount("/rafs/c1/lowerdir", &fx.local_body(&image)).unwrap());
        assert_eq!(fs.read_file("/rafs/c1/lowerdir/file-0").unwrap().len(), 5000);
        done(&daemon.umount("/rafs/c1/lowerdir").unwrap());
        assert!(fs.resolve("/rafs/c1/lowerdir/file-0").is_err());
    }
    let share = fs.resolve(SHARE).unwrap();
    assert!(fs.list(share.nodeid).unwrap().is_empty());
    Ok(())
}

pub(super) fn takes_mounts_at_the_same_time(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 100_000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    std::thread::scope(|scope| {
        for i in 0..16 {
            let (daemon, body) = (&daemon, fx.local_body(&image));
            scope.spawn(move || done(&daemon.mount(&format!("/rafs/c{i}/lowerdir"), &body).unwrap()));
        }
    });
    let mut fs = guest(&daemon);
    let expected = fs::read(source.join("file-0")).unwrap();
    for i in 0..16 {
        assert!(
            fs.read_file(format!("/rafs/c{i}/lowerdir/file-0")).unwrap() == expected,
            "mount {i}"
        );
    }
    Ok(())
}

pub(super) fn takes_a_large_body(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.daemon(&[]);
    // JSON may be padded with blanks anywhere.
    let config = fx
        .local_config(&image)
        .replace("{\"", &format!("{{{}\"", " ".repeat(60_000)));
    let body = mount_body("rafs", &image.bootstrap, &config);
    assert!(body.len() > 300_000 && body.len() < 1 << 20, "{}", body.len());
    done(&daemon.mount("/large", &body).unwrap());
    let beyond = mount_body("rafs", &image.bootstrap, &" ".repeat(2 << 20));
    let answer = daemon.mount("/beyond", &beyond);
    assert!(answer.is_err() || answer.is_ok_and(|a| (400..500).contains(&a.status)));
    assert_eq!(daemon.api("GET", "/api/v1/daemon", None).unwrap().status, 200);
    Ok(())
}
