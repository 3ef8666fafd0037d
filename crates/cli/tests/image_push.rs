//! `nydusbox image convert` to a registry: genuine ones, read back by skopeo.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::path::PathBuf;
use std::process::Command;

use common::{Dir, nydusbox, told};
use layout::{archive, make_layout, write_layout};
use nydusbox_image::source::MediaType;
use nydusbox_testkit::registry::{PASSWORD, Registry, RegistryOptions, USER};
use nydusbox_testkit::registry_proxy::{Part, RegistryProxy};
use nydusbox_testkit::skopeo::Skopeo;
use serde_json::{Value, json};

const PLATFORM: [&str; 2] = ["--platform", "linux/amd64"];

fn image(args: &[&str]) -> Command {
    let mut command = nydusbox();
    command.arg("image").args(args);
    command
}

fn ok(command: &mut Command) -> String {
    let (code, out, err) = told(&command.output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{command:?}: {out}");
    out
}

fn convert(args: &[&str]) -> Value {
    let mut command = image(&["convert", "--json"]);
    command.args(PLATFORM).args(args);
    serde_json::from_str(&ok(&mut command)).unwrap()
}

/// An image whose second layer is larger than what is sent at once, as gzip makes it.
fn an_image(dir: &Dir) -> String {
    let mut state = 1_u64;
    let mut noise = vec![0; 9_000_000];
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    let layers = [
        gzip(dir, &archive(&[("a", &[1; 5000])])),
        gzip(dir, &archive(&[("b", &noise), ("c", b"3")])),
    ];
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (MediaType::ImageLayerGzip, layer.as_slice()))
        .collect();
    write_layout(&dir.join("layout"), "of", &layers).to_string()
}

fn gzip(dir: &Dir, content: &[u8]) -> Vec<u8> {
    let file = dir.join("to-gzip");
    std::fs::write(&file, content).unwrap();
    Command::new("gzip")
        .args(["-c", "-1", "-n"])
        .arg(file)
        .output()
        .unwrap()
        .stdout
}

/// Uploads that were begun, as a proxy saw them.
fn uploads(proxy: &RegistryProxy) -> usize {
    let asked = proxy.asked();
    asked
        .iter()
        .filter(|asked| asked.part == Part::BeginUpload)
        .count()
}

#[test]
fn a_converted_image_is_pushed_and_read_back_with_the_same_digests() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let proxy = RegistryProxy::start(registry.address()).unwrap();
    let dir = Dir::new();
    let of = an_image(&dir);
    let there = format!("docker://{}/a/b:nydus", proxy.host());
    let made = convert(&[&of, &there]);
    let seen = skopeo.inspect(&["--tls-verify=false"], &there);
    assert_eq!(seen["Digest"], made["digest"]);
    for layer in made["layers"].as_array().unwrap() {
        assert!(seen["Layers"].as_array().unwrap().contains(&layer["blob_digest"]));
    }
    // Every blob, which skopeo verifies.
    let back = format!("oci:{}:nydus", dir.join("back").display());
    skopeo.copy(&there, &back);
    // And every chunk.
    let checked: Value = serde_json::from_str(&ok(&mut image(&["check", "--json", &there]))).unwrap();
    assert_eq!(checked["problems"], json!([]));

    // Again: nothing is sent but the manifest, and of the data nothing is fetched but its end.
    let sent = uploads(&proxy);
    assert!(sent >= 4, "two blobs, bootstrap and configuration: {sent}");
    proxy.forget();
    let again = convert(&[&of, &there]);
    assert_eq!(again["digest"], made["digest"]);
    assert!(
        again["layers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|layer| layer["reused"] == true)
    );
    assert_eq!(uploads(&proxy), 0);
    let fetched: u64 = proxy.blobs().values().map(|blob| blob.bytes).sum();
    let data: u64 = made["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["blob_bytes"].as_u64().unwrap())
        .sum();
    assert!(fetched < 200_000 && data > 9_000_000, "{fetched} of {data}");
    let transfer = &again["transfer"];
    assert_eq!(
        (&transfer["written_blobs"], &transfer["present_blobs"]),
        (&json!(0), &json!(4))
    );
}

#[test]
fn by_reference_the_original_layers_of_the_same_registry_are_taken_over() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let proxy = RegistryProxy::start(registry.address()).unwrap();
    let dir = Dir::new();
    let of = an_image(&dir);
    let at = |name: &str| format!("docker://{}/{name}", proxy.host());
    skopeo.copy(&of, &at("origin:1"));
    proxy.forget();
    let made = convert(&["--mode", "ref", &at("origin:1"), &at("lazy:1")]);
    let layers = made["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["is_index"] == true), "{layers:?}");
    let asked = proxy.asked();
    for layer in layers {
        let digest = layer["source_digest"].as_str().unwrap().replace(':', "%3A");
        let mount = format!("/v2/lazy/blobs/uploads/?mount={digest}&from=origin");
        let mounted = asked.iter().find(|asked| asked.path == mount).unwrap();
        assert_eq!(mounted.status, Some(201), "taken over");
    }
    ok(&mut image(&["check", &at("lazy:1")]));

    // From elsewhere they are sent.
    convert(&["--mode", "ref", &of, &at("other:1")]);
    ok(&mut image(&["check", &at("other:1")]));
}

/// docker's configuration with credentials for a registry.
fn auth_file(dir: &Dir, name: &str, host: &str, password: &str) -> PathBuf {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    let file = dir.join(name);
    std::fs::write(&file, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    file
}

#[test]
fn a_registry_with_a_password_and_tls_takes_it_from_who_has_both() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions {
        password: true,
        tls: true,
    }) else {
        return;
    };
    let dir = Dir::new();
    let of = make_layout(&dir.join("layout"), "of", &[&[("a", &[1; 5000])]]).to_string();
    let there = format!("docker://{}/a/b:nydus", registry.host());
    let right = auth_file(&dir, "right.json", &registry.host(), PASSWORD);
    let wrong = auth_file(&dir, "wrong.json", &registry.host(), "wrong");
    let ca = registry.ca_file().unwrap().to_str().unwrap().to_owned();
    let push = |options: &[&str]| {
        let mut command = image(&["convert"]);
        command
            .args(PLATFORM)
            .args(options)
            .args([&of, &there])
            .env("DOCKER_CONFIG", dir.path());
        told(&command.output().unwrap())
    };
    for (options, words, hint) in [
        (
            &["--tls-ca", &ca][..],
            "asks for credentials, and there are none",
            "docker login",
        ),
        (
            &["--tls-ca", &ca, "--authfile", wrong.to_str().unwrap()],
            "does not accept the credentials",
            "--authfile",
        ),
    ] {
        let (code, out, err) = push(options);
        assert_eq!((code, &*out), (1, ""), "{err}");
        assert!(err.contains(words) && err.contains(hint), "{err}");
        assert!(!err.contains(PASSWORD) && err.lines().count() <= 2, "{err}");
    }
    let (code, _, err) = push(&["--tls-ca", &ca, "--authfile", right.to_str().unwrap()]);
    assert_eq!((code, &*err), (0, ""));
    let creds = format!("--creds={USER}:{PASSWORD}");
    let certs = dir.mkdir("certs");
    std::fs::copy(&ca, certs.join("ca.crt")).unwrap();
    let certs = format!("--cert-dir={}", certs.display());
    let seen = skopeo.inspect(&[&creds, &certs], &there);
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 2);
}

fn copied(args: &[&str]) -> Value {
    let mut command = image(&["copy", "--json"]);
    command.args(PLATFORM).args(args);
    serde_json::from_str(&ok(&mut command)).unwrap()
}

#[test]
fn an_image_is_copied_with_its_digest_between_layouts_and_registries() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let of = an_image(&dir);
    let at = |name: &str| format!("docker://{}/{name}", registry.host());
    let pushed = copied(&[&of, &at("a:1")]);
    assert_eq!(
        skopeo.inspect(&["--tls-verify=false"], &at("a:1"))["Digest"],
        pushed["digest"]
    );
    assert_eq!(skopeo.inspect(&[], &of)["Digest"], pushed["digest"]);
    let transfer = |copied: &Value| {
        ["written_blobs", "present_blobs", "mounted_blobs"]
            .map(|name| copied["transfer"][name].as_u64().unwrap())
    };
    assert_eq!(transfer(&pushed), [3, 0, 0]);
    // Within the registry nothing is sent; the same again is there.
    let moved = copied(&[&at("a:1"), &at("b/c:2")]);
    assert_eq!(
        (&moved["digest"], transfer(&moved)),
        (&pushed["digest"], [0, 0, 3])
    );
    assert_eq!(transfer(&copied(&[&at("a:1"), &at("b/c:2")])), [0, 3, 0]);
    let back = format!("oci:{}:back", dir.join("back").display());
    assert_eq!(copied(&[&at("b/c:2"), &back])["digest"], pushed["digest"]);
    let text = ok(image(&["copy", &of, &at("a:1")]).args(PLATFORM));
    assert!(
        text.contains("3 blobs") && text.contains("3 there already"),
        "{text}"
    );
}

/// skopeo would leave the data behind.
#[test]
fn of_an_image_by_reference_the_original_layers_are_copied_too() {
    let Ok(registry) = Registry::start(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let of = an_image(&dir);
    let lazy = format!("oci:{}:lazy", dir.join("lazy").display());
    convert(&["--mode", "ref", &of, &lazy]);
    let there = format!("docker://{}/lazy:1", registry.host());
    let copied = copied(&[&lazy, &there]);
    assert_eq!(
        copied["blobs"], 6,
        "two indices, two layers, bootstrap, configuration"
    );
    let checked: Value = serde_json::from_str(&ok(&mut image(&["check", "--json", &there]))).unwrap();
    assert_eq!(checked["problems"], json!([]));
}

#[test]
fn what_was_built_is_pushed_and_is_an_image_to_pull_and_check() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let root = dir.mkdir("root");
    std::fs::write(root.join("file"), vec![7; 300_000]).unwrap();
    let built = dir.join("built");
    let built = built.to_str().unwrap();
    ok(&mut image(&["build", root.to_str().unwrap(), built]));
    let there = format!("docker://{}/built:1", registry.host());
    let pushed = copied(&[built, &there]);
    let seen = skopeo.inspect(&["--tls-verify=false"], &there);
    assert_eq!(
        (&seen["Digest"], &seen["Architecture"]),
        (&pushed["digest"], &json!("amd64"))
    );
    ok(&mut image(&["check", &there]));
    let diff = image(&["diff", built, &there]).output().unwrap();
    assert_eq!(told(&diff).0, 0, "{diff:?}");
    let pulled = ok(image(&["pull", &there])
        .args(PLATFORM)
        .env("NYDUSBOX_DATA_DIR", dir.join("data")));
    assert!(pulled.contains("the data where it is"), "{pulled}");
    // The same again is the same image.
    assert_eq!(copied(&[built, &there])["digest"], pushed["digest"]);
}
