//! The genuine nydusctl 2.2.0 drives the embedded daemon, and the API's answers are nydusd's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::{Daemon, Dir, nydusbox, peer, told};

fn image(dir: &Dir) -> std::path::PathBuf {
    let source = dir.mkdir("source");
    std::fs::write(source.join("file"), vec![7; 100_000]).unwrap();
    let out = dir.join("image");
    let built = nydusbox()
        .args(["image", "build"])
        .arg(&source)
        .arg(&out)
        .output()
        .unwrap();
    assert!(built.status.success(), "{:?}", told(&built));
    out
}

fn config(image: &std::path::Path, dir: &Dir) -> String {
    serde_json::json!({
        "version": 2, "id": "",
        "backend": {"type": "localfs", "localfs": {"dir": image.join("blobs")}},
        "cache": {"type": "blobcache", "filecache": {"work_dir": dir.mkdir("cache")}},
        "rafs": {"mode": "direct", "enable_xattr": true, "prefetch": {"enable": false}}
    })
    .to_string()
}

#[test]
fn nydusctl_mounts_shows_measures_and_unmounts() {
    let Some(nydusctl) = peer("nydusctl") else { return };
    let dir = Dir::new();
    let image = image(&dir);
    let config_file = dir.join("config.json");
    std::fs::write(&config_file, config(&image, &dir)).unwrap();
    let daemon = Daemon::start(&[]);
    let ctl = |args: &[&str]| {
        let output = Command::new(&nydusctl)
            .arg("--sock")
            .arg(daemon.api())
            .args(args)
            .output()
            .unwrap();
        let (code, out, err) = told(&output);
        assert_eq!(code, 0, "nydusctl {args:?}: {out} {err}");
        out
    };
    let bootstrap = image.join("image.boot");
    ctl(&[
        "mount",
        "--type",
        "rafs",
        "--source",
        bootstrap.to_str().unwrap(),
        "--config",
        config_file.to_str().unwrap(),
        "--mountpoint",
        "/rafs/c1/lowerdir",
    ]);
    let info = ctl(&["info"]);
    assert!(
        info.contains("RUNNING") && info.contains("/rafs/c1/lowerdir"),
        "{info}"
    );
    for category in ["fsstats", "backend", "cache"] {
        let shown = ctl(&["--raw", "metrics", category]);
        assert!(shown.trim_start().starts_with('{'), "{category}: {shown}");
    }
    ctl(&["umount", "/rafs/c1/lowerdir"]);
    assert!(!ctl(&["info"]).contains("/rafs/c1/lowerdir"));
    ctl(&["set", "log-level", "debug"]);
}

#[test]
fn errors_have_a_code_a_sentence_and_nydusds_status() {
    let dir = Dir::new();
    let image = image(&dir);
    let good = config(&image, &dir);
    let share = dir.mkdir("share");
    let daemon = Daemon::start(&[]);
    let passthrough =
        serde_json::json!({"fs_type": "passthrough_fs", "source": share, "config": ""}).to_string();
    let rafs = |source: &std::path::Path, config: &str| {
        serde_json::json!({"fs_type": "rafs", "source": source, "config": config}).to_string()
    };
    let boot = image.join("image.boot");
    let truncated = dir.join("truncated");
    let whole = std::fs::read(&boot).unwrap();
    std::fs::write(&truncated, &whole[..whole.len() / 3]).unwrap();
    let random = dir.join("random");
    std::fs::write(&random, [0x5a; 8192]).unwrap();
    let no_backend = r#"{"version":2,"cache":{"type":"blobcache"},"rafs":{"mode":"direct"}}"#;
    let missing_blobs = good.replace("/blobs", "/no-blobs");
    assert_eq!(
        daemon.request("POST", "/api/v1/mount?mountpoint=/containers", &passthrough),
        (204, String::new())
    );
    let cases: &[(&str, &str, String, u16, &str, &str)] = &[
        (
            "POST",
            "/api/v1/mount?mountpoint=/containers",
            passthrough.clone(),
            500,
            "AlreadyMounted",
            "/containers",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/containers/a",
            passthrough.clone(),
            500,
            "AlreadyMounted",
            "inside",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/a/../b",
            passthrough.clone(),
            400,
            "BadRequest",
            "..",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=a",
            passthrough.clone(),
            400,
            "BadRequest",
            "absolute",
        ),
        (
            "POST",
            "/api/v1/mount",
            passthrough.clone(),
            400,
            "BadRequest",
            "mountpoint",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            "{".into(),
            400,
            "BadRequest",
            "mount command",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            r#"{"fs_type":"rafs","source":"/x"}"#.into(),
            400,
            "BadRequest",
            "config",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            passthrough.replace("/share", "/gone"),
            500,
            "BadSource",
            "gone",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&dir.join("none"), &good),
            500,
            "BadImage",
            "none",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&random, &good),
            500,
            "BadImage",
            "not a RAFS bootstrap",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&truncated, &good),
            500,
            "BadImage",
            "damaged",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&boot, "not json"),
            500,
            "BadConfig",
            "neither JSON",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&boot, no_backend),
            500,
            "BadConfig",
            "backend",
        ),
        (
            "POST",
            "/api/v1/mount?mountpoint=/m",
            rafs(&boot, &missing_blobs),
            500,
            "BadConfig",
            "no-blobs",
        ),
        (
            "DELETE",
            "/api/v1/mount?mountpoint=/m",
            String::new(),
            500,
            "NotMounted",
            "/m",
        ),
        (
            "PUT",
            "/api/v1/mount?mountpoint=/m",
            rafs(&boot, &good),
            500,
            "NotMounted",
            "/m",
        ),
        (
            "GET",
            "/api/v1/daemon/backend?mountpoint=/containers",
            String::new(),
            500,
            "Internal",
            "not a RAFS",
        ),
        (
            "GET",
            "/api/v1/metrics?id=/nothing",
            String::new(),
            404,
            "NoCounter",
            "id",
        ),
        (
            "PUT",
            "/api/v1/daemon/start",
            String::new(),
            400,
            "WrongState",
            "running",
        ),
        (
            "PUT",
            "/api/v1/daemon",
            r#"{"log_level":"loud"}"#.into(),
            400,
            "BadRequest",
            "log level",
        ),
        (
            "PUT",
            "/api/v1/daemon/fuse/sendfd",
            String::new(),
            501,
            "Unsupported",
            "virtiofs",
        ),
        (
            "GET",
            "/api/v2/blobs?domain_id=x",
            String::new(),
            501,
            "Unsupported",
            "singleton",
        ),
        (
            "PATCH",
            "/api/v1/daemon",
            String::new(),
            400,
            "BadRequest",
            "PATCH",
        ),
        (
            "GET",
            "/api/v1/daemon/",
            String::new(),
            404,
            "NoRoute",
            "/api/v1/daemon/",
        ),
    ];
    for (method, target, body, status, code, word) in cases {
        let (got, answer) = daemon.request(method, target, body);
        let error: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        let message = error["message"].as_str().unwrap_or_default();
        assert_eq!(
            (got, error["code"].as_str()),
            (*status, Some(*code)),
            "{method} {target} {body}: {answer}"
        );
        assert!(
            message.contains(word) && !message.contains('\n'),
            "{method} {target} {body}: {message}"
        );
    }
    // After all of it the daemon serves as before, with exactly what was mounted.
    let (status, info) = daemon.request("GET", "/api/v1/daemon", "");
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        info["backend_collection"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["/containers"]
    );
}

#[test]
fn a_body_of_half_a_megabyte_is_read_and_one_of_two_is_refused() {
    let daemon = Daemon::start(&[]);
    let body = |len: usize| {
        serde_json::json!({"fs_type": "rafs", "source": "/none", "config": "x".repeat(len)}).to_string()
    };
    let (status, answer) = daemon.request("POST", "/api/v1/mount?mountpoint=/m", &body(500_000));
    assert_eq!((status, answer.contains("BadConfig")), (500, true), "{answer}");
    let (status, answer) = daemon.request("POST", "/api/v1/mount?mountpoint=/m", &body(2_000_000));
    assert_eq!((status, answer.contains("TooLarge")), (413, true), "{answer}");
}

#[test]
fn planted_secrets_are_in_no_answer_and_no_log() {
    let dir = Dir::new();
    let image = image(&dir);
    let mut config: serde_json::Value = serde_json::from_str(&config(&image, &dir)).unwrap();
    config["backend"]["registry"] = serde_json::json!({
        "host": "127.0.0.1:1", "repo": "r", "auth": "U0VDUkVULTE=", "registry_token": "SECRET-2",
        "proxy": {"url": "http://SECRET-3:SECRET-4@127.0.0.1:9"}
    });
    config["backend"]["s3"] = serde_json::json!({
        "endpoint": "e", "region": "r", "bucket_name": "b", "access_key_id": "SECRET-5", "access_key_secret": "SECRET-6"
    });
    let daemon = Daemon::start(&["--log-level", "trace"]);
    let mount = |config: &str| {
        let body =
            serde_json::json!({"fs_type": "rafs", "source": image.join("image.boot"), "config": config});
        daemon.request("POST", "/api/v1/mount?mountpoint=/m", &body.to_string())
    };
    assert_eq!(mount(&config.to_string()), (204, String::new()));
    let mut said = daemon.request("GET", "/api/v1/daemon", "").1;
    said += &daemon.request("GET", "/api/v1/daemon/events", "").1;
    assert_eq!(daemon.request("DELETE", "/api/v1/mount?mountpoint=/m", "").0, 204);
    // A registry that is used, and fails: its configuration is logged by the libraries below.
    config["backend"]["type"] = "registry".into();
    said += &mount(&config.to_string()).1;
    said += &mount(&format!("{config} broken")).1;
    said += &daemon.request("GET", "/api/v1/daemon", "").1;
    said += &daemon.log();
    for secret in ["SECRET-", "U0VDUkVULTE="] {
        let at = said
            .find(secret)
            .map(|at| &said[at.saturating_sub(200)..(at + 80).min(said.len())]);
        assert_eq!(at, None, "{secret} was said");
    }
}
