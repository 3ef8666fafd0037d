#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;

use nydus_api::RegistryConfig;
use serde_json::json;

use super::super::blob_proxy::HttpUrl;
use super::super::test_server::{TestServer, reply};
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

#[test]
fn a_proxy_stands_as_nydus_reads_it_and_its_password_is_shown_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let proxied = |proxy| {
        let backend = rafs_backend(&"h.io/app".parse().unwrap(), &options(dir.path(), &json!({}))).unwrap();
        let backend = backend.with_proxy(proxy);
        let debug = format!("{backend:?}");
        let read: RegistryConfig = serde_json::from_value(serde_json::to_value(&backend).unwrap()).unwrap();
        (read.proxy, debug)
    };
    let plain = proxied(None).0;
    assert_eq!(plain, nydus_api::ProxyConfig::default());
    let mut proxy = BlobProxy::new("http://me:hunter2@127.0.0.1:4001".parse().unwrap());
    let (read, debug) = proxied(Some(proxy.clone()));
    assert_eq!(read.url, "http://me:hunter2@127.0.0.1:4001/");
    assert!(
        !debug.contains("hunter2") && debug.contains("127.0.0.1:4001"),
        "{debug}"
    );
    assert_eq!(
        (read.ping_url.as_str(), read.fallback, read.use_http),
        ("", true, false)
    );
    proxy.ping_url = Some("http://127.0.0.1:4003/healthy".parse().unwrap());
    (proxy.fallback, proxy.use_http) = (false, true);
    let (read, _) = proxied(Some(proxy));
    assert_eq!(read.ping_url, "http://127.0.0.1:4003/healthy");
    assert_eq!((read.fallback, read.use_http), (false, true));
    assert_eq!(read.check_interval, plain.check_interval);
    for text in ["127.0.0.1:4001", "socks5://h:1", "http://", "/run/proxy.sock"] {
        assert!(text.parse::<HttpUrl>().is_err(), "{text}");
    }
}

#[test]
fn authorities_are_told_of_every_server_whose_certificate_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let name = "h.io/app".parse().unwrap();
    let own = dir.path().join("certs.d/h.io");
    fs::create_dir_all(&own).unwrap();
    let hosts = "ca = \"own.pem\"\n[host.\"https://m.io\"]\nca = \"/m.pem\"\n\
                 [host.\"http://plain.io\"]\nca = \"/plain.pem\"\n\
                 [host.\"https://any.io\"]\nca = \"/any.pem\"\nskip_verify = true";
    fs::write(own.join("hosts.toml"), hosts).unwrap();
    let with_ca = AccessOptions {
        ca_files: vec!["/given.pem".into()],
        ..options(dir.path(), &json!({}))
    };
    let files = registry_ca_files(&name, &with_ca).unwrap();
    assert_eq!(
        files,
        [Path::new("/given.pem"), Path::new("/m.pem"), &own.join("own.pem")]
    );
}

#[test]
fn a_mirror_below_a_path_is_asked_for_the_repository_by_its_name_there() {
    let dir = tempfile::tempdir().unwrap();
    let name = "h.io/team/app:1".parse().unwrap();
    let own = dir.path().join("certs.d/h.io");
    fs::create_dir_all(&own).unwrap();
    let options = options(dir.path(), &json!({}));
    // As Harbor and Artifact Registry stand for other registries.
    let mirror = TestServer::start(|_, _| reply(200));
    let repo = |path: &str| {
        let hosts = format!("[host.\"http://{}{path}\"]\noverride_path = true", mirror.host());
        fs::write(own.join("hosts.toml"), hosts).unwrap();
        let backend = rafs_backend(&name, &options).unwrap();
        (backend.host, backend.repo)
    };
    for path in ["/v2/hub", "/v2/hub/"] {
        assert_eq!(repo(path), (mirror.host(), "hub/team/app".to_owned()));
    }
    assert_eq!(repo("/v2/one/two").1, "one/two/team/app");
    assert_eq!(
        mirror.lines().last().unwrap(),
        "HEAD /v2/one/two/team/app/manifests/1"
    );
    // nydus writes `/v2/` itself.
    assert_eq!(repo("/api/hub"), ("h.io".to_owned(), "team/app".to_owned()));
    assert_eq!(mirror.asked().len(), 3);
}

#[test]
fn the_first_mirror_that_has_the_image_serves_it_and_else_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let name = "h.io/app:1".parse().unwrap();
    let own = dir.path().join("certs.d/h.io");
    fs::create_dir_all(&own).unwrap();
    let options = options(dir.path(), &json!({}));
    let lacks = TestServer::start(|_, _| reply(404));
    let has = TestServer::start(|_, _| reply(200));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone_host = gone.local_addr().unwrap().to_string();
    drop(gone);
    let serves = |mirrors: &[(&str, &str)]| {
        let tables = mirrors
            .iter()
            .map(|(host, rest)| format!("[host.\"http://{host}\"]\n{rest}\n"));
        fs::write(own.join("hosts.toml"), tables.collect::<String>()).unwrap();
        rafs_backend(&name, &options).unwrap().host
    };
    let (lacking, having) = (lacks.host(), has.host());
    let (lacking, having) = (&*lacking, &*having);
    assert_eq!(serves(&[(&gone_host, ""), (lacking, ""), (having, "")]), having);
    // A daemon never names the registry to a mirror.
    assert_eq!(has.lines(), ["HEAD /v2/app/manifests/1"]);
    assert_eq!(serves(&[(lacking, ""), (&gone_host, "")]), "h.io");
    // What it could not ask there, it does not ask there.
    let unfit = ["[host.\"x\".header]", "capabilities = [\"resolve\"]"];
    let header = unfit[0].replace("x", &format!("http://{having}"));
    assert_eq!(serves(&[(having, &format!("{header}\nx = \"y\""))]), "h.io");
    assert_eq!(serves(&[(having, unfit[1])]), "h.io");
    assert_eq!(has.asked().len(), 1);
}
