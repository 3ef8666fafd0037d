#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;

use nydus_api::RegistryConfig;
use serde_json::json;

use super::*;

fn options(dir: &Path, auths: &serde_json::Value) -> AccessOptions {
    let auth_file = dir.join("config.json");
    fs::write(&auth_file, json!({ "auths": auths }).to_string()).unwrap();
    AccessOptions {
        auth_file: Some(auth_file),
        hosts_dir: Some(dir.join("certs.d")),
        ..AccessOptions::default()
    }
}

#[test]
fn nydus_reads_the_backend_as_it_is_written_and_nobody_sees_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let name = "127.0.0.1:5000/team/app:1".parse().unwrap();
    let auths = json!({"127.0.0.1:5000": {"username": "me", "password": "hunter2"}});
    let backend = rafs_backend(&name, &options(dir.path(), &auths)).unwrap();
    let debug = format!("{backend:?}");
    let read: RegistryConfig = serde_json::from_value(serde_json::to_value(&backend).unwrap()).unwrap();
    assert_eq!(
        (&*read.scheme, &*read.host, &*read.repo),
        ("http", "127.0.0.1:5000", "team/app")
    );
    assert_eq!(read.auth.as_deref(), Some(&*STANDARD.encode("me:hunter2")));
    assert!(
        !debug.contains("hunter2") && !debug.contains(&STANDARD.encode("me:hunter2")),
        "{debug}"
    );
}

#[test]
fn docker_hub_is_asked_at_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let backend = rafs_backend(&"debian".parse().unwrap(), &options(dir.path(), &json!({}))).unwrap();
    assert_eq!(
        (&*backend.scheme, &*backend.host),
        ("https", "registry-1.docker.io")
    );
    assert_eq!(
        (&*backend.repo, backend.has_credentials()),
        ("library/debian", false)
    );
}

#[test]
fn what_the_daemon_cannot_do_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let name = "h.io/app".parse().unwrap();
    let own = dir.path().join("certs.d/h.io");
    fs::create_dir_all(&own).unwrap();
    let plain = options(dir.path(), &json!({}));
    let token = options(dir.path(), &json!({"h.io": {"identitytoken": "t"}}));
    let refused = |options: &AccessOptions| rafs_backend(&name, options).unwrap_err();
    assert!(matches!(refused(&token), BackendError::IdentityToken { .. }));
    let with_ca = AccessOptions {
        ca_files: vec!["ca.pem".into()],
        ..plain.clone()
    };
    assert!(matches!(refused(&with_ca), BackendError::Certificates { .. }));
    for (text, path) in [
        ("[header]\nx = \"y\"", None),
        ("server = \"https://h.io/p\"", Some("/p/v2/")),
    ] {
        fs::write(own.join("hosts.toml"), text).unwrap();
        match (refused(&plain), path) {
            (BackendError::Headers { .. }, None) => {}
            (BackendError::Path { path: found, .. }, Some(path)) => assert_eq!(found, path),
            (other, _) => panic!("{other}"),
        }
    }
}
