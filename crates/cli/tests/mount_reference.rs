//! What `mount --image` and `remount --image` tell a daemon of a registry, and what the daemon makes of it: ours and a
//! genuine nydusd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;
#[path = "common/published.rs"]
mod published;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use common::host_mount::{Mounted, can_mount};
use common::sandboxes::{text, until};
use common::{Dir, peer, require, told};
use nydusbox_testkit::caching_proxy::CachingProxy;
use nydusbox_testkit::registry::RegistryOptions;
use nydusbox_testkit::registry_proxy::{Part, RegistryProxy, TokenRules};
use published::{FILES, Host, MIB, Published, content};
use serde_json::json;

/// Ours, and the genuine one where it is installed.
fn daemons() -> impl Iterator<Item = Option<PathBuf>> {
    std::iter::once(None).chain(peer("nydusd").map(Some))
}

/// GETs of blobs.
fn blob_requests(proxy: &RegistryProxy) -> usize {
    let asked = proxy.asked();
    asked
        .iter()
        .filter(|asked| asked.part == Part::Blob && asked.method == "GET")
        .count()
}

#[test]
fn blobs_come_through_the_proxy_and_from_the_registry_while_that_is_gone() {
    let Some(nginx) = require("nginx", &[Some("/usr/sbin/nginx".into())]) else {
        return;
    };
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    let reference = Published::at(&image.registry.host());
    for daemon in daemons() {
        let mut host = Host::new(daemon.as_deref());
        let mut proxy = CachingProxy::start(&nginx, &host.s.dir.join("proxy"));
        let (url, ping) = (proxy.url(), proxy.ping_url());
        let through = ["--blob-proxy", url.as_str(), "--blob-proxy-ping", ping.as_str()];
        host.ok("mount", &reference, &through);
        host.assert_reads([0, 9]);
        let passed = proxy.requests();
        assert!(passed > 0);
        proxy.kill();
        host.assert_reads([3, 12]);
        proxy.start_again();
        let mut files = (0..FILES).filter(|n| ![0, 3, 9, 12].contains(n));
        until("the proxy is asked again", || {
            // A chunk each time that has noticed nothing yet. The proxy is pinged every 5 s.
            host.assert_reads(files.next());
            std::thread::sleep(Duration::from_millis(600));
            proxy.requests() > passed
        });
        host.stop();
    }
}

#[test]
fn without_fallback_the_registry_is_not_asked_for_what_the_proxy_does_not_give() {
    let Some(nginx) = require("nginx", &[Some("/usr/sbin/nginx".into())]) else {
        return;
    };
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    let front = RegistryProxy::start(image.registry.address()).unwrap();
    let mut host = Host::new(None);
    let mut proxy = CachingProxy::start(&nginx, &host.s.dir.join("proxy"));
    let url = proxy.url();
    let through = ["--blob-proxy", url.as_str(), "--no-blob-proxy-fallback"];
    host.ok("mount", &Published::at(&front.host()), &through);
    host.assert_reads([0]);
    let asked = blob_requests(&front);
    proxy.kill();
    assert_eq!(host.read(9), None);
    assert_eq!(blob_requests(&front), asked);
    proxy.start_again();
    host.assert_reads([9]);
    host.stop();
}

#[test]
fn what_a_trace_names_is_there_before_it_is_read_and_nothing_else_is_fetched() {
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    for daemon in daemons() {
        let front = RegistryProxy::start(image.registry.address()).unwrap();
        let mut host = Host::new(daemon.as_deref());
        let trace = host.s.dir.join("trace");
        let lines = [
            json!({"nydusbox_trace": 1}),
            json!({"path": "/file-11", "offset": 8192, "length": 4096}),
            json!({"path": "/file-02"}),
            json!({"path": "/none"}),
        ];
        fs::write(&trace, lines.map(|line| line.to_string()).join("\n")).unwrap();
        let trace = text(&trace);
        let by_trace = ["--prefetch-trace", trace.as_str()];
        host.ok("mount", &Published::at(&front.host()), &by_trace);
        let cache = host.data_dir().join("cache");
        let cached = || {
            let files = fs::read_dir(&cache).unwrap().map(Result::unwrap);
            files
                .filter(|file| file.file_name().to_str().unwrap().ends_with(".blob.data"))
                .map(|file| file.metadata().unwrap().blocks() * 512)
                .sum::<u64>()
        };
        until("both are there", || cached() >= 2 * MIB as u64);
        let settled = blob_requests(&front);
        host.assert_reads([2, 11]);
        assert_eq!(blob_requests(&front), settled);
        assert_eq!(cached(), 2 * MIB as u64);
        host.assert_reads([5]);
        assert!(blob_requests(&front) > settled);
        host.stop();
    }
}

#[test]
fn a_trace_that_cannot_be_read_is_refused_before_anything_is_fetched() {
    let host = Host::new(None);
    for (more, words) in [
        (vec!["--prefetch-trace", "/none"], "read the trace /none"),
        (
            vec!["--prefetch-trace", "/x", "--no-prefetch"],
            "cannot be used with",
        ),
    ] {
        let output = host.image("mount", &Published::at("127.0.0.1:1"), &more).output();
        let (code, _, err) = told(&output.unwrap());
        assert!((1..=2).contains(&code) && err.contains(words), "{code} {err}");
    }
}

#[test]
fn options_for_references_are_refused_beside_other_ways_to_name_an_image() {
    let host = Host::new(None);
    for more in [
        ["--prefetch-trace", "/x"],
        ["--cache-quota", "1G"],
        ["--blob-proxy", "http://127.0.0.1:1"],
    ] {
        let named = ["mount", "s1", "c1", "--bootstrap", "/x", "--config", "/x"];
        host.s
            .refused(&[&named[..], &more].concat(), 2, &[more[0], "--image"]);
    }
}

#[test]
fn a_registry_with_an_authority_of_its_own_is_read_if_that_was_given_and_only_then() {
    let options = RegistryOptions {
        tls: true,
        ..RegistryOptions::default()
    };
    let Some(image) = Published::new(options) else {
        return;
    };
    let reference = Published::at(&image.registry.host());
    let ca = text(image.registry.ca_file().unwrap());
    let hosts = Dir::new();
    let says = |dir: &str, more: &str| {
        let own = hosts.mkdir(&format!("{dir}/{}", image.registry.host()));
        let toml = format!("server = \"https://{}\"\n{more}", image.registry.host());
        fs::write(own.join("hosts.toml"), toml).unwrap();
        text(&hosts.join(dir))
    };
    let (knows, does_not) = (says("knows", &format!("ca = {ca:?}\n")), says("does-not", ""));
    for daemon in daemons() {
        for given in [
            ["--tls-ca", ca.as_str()],
            ["--hosts-dir", knows.as_str()],
            ["--tls-skip-verify", "--no-prefetch"],
        ] {
            let mut host = Host::new(daemon.as_deref());
            let unknown = host
                .image("mount", &reference, &["--hosts-dir", does_not.as_str()])
                .output();
            let (code, _, err) = told(&unknown.unwrap());
            assert!(code == 1 && err.contains("certificate"), "{code} {err}");
            host.ok("mount", &reference, &given);
            host.assert_reads([1, 8]);
            host.ok("remount", &reference, &given);
            host.assert_reads([4]);
            host.stop();
            host.s.assert_nothing_left();
        }
    }
}

#[test]
fn the_first_mirror_that_has_the_image_serves_its_blobs() {
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    let hosts = Dir::new();
    let own = hosts.mkdir("registry.test");
    let mirror = RegistryProxy::start(image.registry.address()).unwrap();
    // The registry itself is nowhere, and so is the mirror before the one that is there.
    let toml = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.\"http://{}\"]\n",
        mirror.host()
    );
    fs::write(own.join("hosts.toml"), toml).unwrap();
    for daemon in daemons() {
        let mut host = Host::new(daemon.as_deref());
        let hosts_dir = text(hosts.path());
        let by_mirror = ["--hosts-dir", hosts_dir.as_str()];
        host.ok("mount", &Published::at("registry.test"), &by_mirror);
        let asked = blob_requests(&mirror);
        host.assert_reads([0, 7]);
        assert!(blob_requests(&mirror) > asked);
        host.stop();
    }
}

#[test]
fn a_mount_on_this_host_trusts_the_authority_that_was_given() {
    let options = RegistryOptions {
        tls: true,
        ..RegistryOptions::default()
    };
    let Some(image) = Published::new(options) else {
        return;
    };
    if !can_mount() {
        return;
    }
    let dir = Dir::new();
    let reference = Published::at(&image.registry.host());
    let ca = text(image.registry.ca_file().unwrap());
    let more = ["--platform", "linux/amd64", "--tls-ca", ca.as_str()];
    let mut mounted = Mounted::start_with(&dir, &reference, &more);
    assert!(fs::read(mounted.at.join("file-03")).unwrap() == content(3));
    mounted.signal(rustix::process::Signal::INT);
    assert_eq!(mounted.end(), Some(0));
}

/// The proxy is asked for a host that has no address, and never for one of this machine.
#[test]
fn a_daemon_fetches_through_the_proxy_that_the_environment_names_but_for_this_machine() {
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    for daemon in daemons() {
        let front = RegistryProxy::start(image.registry.address()).unwrap();
        let (through, here) = (format!("http://{}", front.host()), image.registry.host());
        for (proxy, host_name, more) in [
            (through.as_str(), "registry.test:5000", vec!["--plain-http"]),
            ("http://127.0.0.1:1", here.as_str(), vec![]),
        ] {
            let env = [("HTTP_PROXY", proxy), ("NO_PROXY", "other.test")];
            let mut host = Host::with_env(daemon.as_deref(), &env);
            let mut mount = host.image("mount", &Published::at(host_name), &more);
            let output = mount.envs(env).output().unwrap();
            assert!(output.status.success(), "{:?}", told(&output));
            let asked = blob_requests(&front);
            host.assert_reads([6, 13]);
            assert_eq!(blob_requests(&front) > asked, proxy == through);
            host.stop();
        }
    }
}

#[test]
fn reads_go_on_when_tokens_expire_and_after_a_remount_when_the_password_has_changed() {
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    for daemon in daemons() {
        let front = RegistryProxy::start(image.registry.address()).unwrap();
        let demand = |password: &str| {
            front.demand_tokens(Some(TokenRules {
                requests_per_token: 2,
                credentials: Some(("me".into(), password.into())),
            }));
        };
        let mut host = Host::new(daemon.as_deref());
        let authfile = host.s.dir.join("config.json");
        let know = |password: &str| {
            let auths = json!({"auths": {(front.host()): {"username": "me", "password": password}}});
            fs::write(&authfile, auths.to_string()).unwrap();
        };
        demand("first");
        know("first");
        let file = text(&authfile);
        let with_auth = ["--authfile", file.as_str()];
        let reference = Published::at(&front.host());
        host.ok("mount", &reference, &with_auth);
        host.assert_reads([0, 15, 1, 14, 2, 13]);
        let given = front.asked();
        let given = given
            .iter()
            .filter(|asked| asked.part == Part::Token && asked.status == Some(200));
        assert!(given.count() > 3, "tokens have not expired");
        // Long after, the account has another password.
        demand("second");
        assert_eq!(host.read(5), None);
        know("second");
        host.ok("remount", &reference, &with_auth);
        host.assert_reads([5, 10, 6, 9]);
        host.stop();
    }
}

#[test]
fn a_quota_is_remembered_and_kept_when_something_is_unmounted_and_when_a_sandbox_ends() {
    let Some(image) = Published::new(RegistryOptions::default()) else {
        return;
    };
    let reference = Published::at(&image.registry.host());
    for daemon in daemons() {
        let mut host = Host::new(daemon.as_deref());
        let cached = |host: &Host| {
            let files = fs::read_dir(host.data_dir().join("cache")).unwrap();
            files
                .filter(|file| {
                    let name = file.as_ref().unwrap().file_name();
                    name.to_str().unwrap().ends_with(".blob.data")
                })
                .count()
        };
        host.ok("mount", &reference, &["--cache-quota", "64K"]);
        host.assert_reads([0, 1]);
        assert_eq!(cached(&host), 1, "what is in use goes");
        host.s.ok(&["umount", "s1", "c1"]);
        until("the cache is within its quota", || cached(&host) == 0);
        // Not asked for this time.
        host.ok("mount", &reference, &[]);
        host.assert_reads([2]);
        host.stop();
        host.s.assert_nothing_left();
        assert_eq!(cached(&host), 0);

        host.start(daemon.as_deref(), &[]);
        host.ok("mount", &reference, &["--cache-quota", "none"]);
        host.assert_reads([2]);
        host.stop();
        host.s.assert_nothing_left();
        assert_eq!(cached(&host), 1);
    }
}
