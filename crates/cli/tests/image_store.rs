//! `nydusbox image pull`, `ls`, `rm` and `gc`: the store as its users see it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use common::sandboxes::{Sandboxes, text};
use common::{Dir, nydusbox, peer, told};
use layout::make_layout;
use nydusbox_image::source::sha256_of;
use nydusbox_testkit::peers::require_program;
use nydusbox_testkit::registry::RegistryOptions;
use nydusbox_testkit::skopeo::Skopeo;
use nydusbox_testkit::suite::small_disk::SmallDisk;
use serde_json::Value;

/// A command on a data directory of the test's own.
fn image(dir: &Dir, args: &[&str]) -> Command {
    let mut command = nydusbox();
    command
        .env("NYDUSBOX_DATA_DIR", dir.join("data"))
        .env("NYDUSBOX_STATE_DIR", dir.join("state"))
        .arg("image")
        .args(args);
    command
}

fn ok(dir: &Dir, args: &[&str]) -> String {
    let (code, out, err) = told(&image(dir, args).output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{args:?}: {out}");
    out
}

fn json(dir: &Dir, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    serde_json::from_str(&ok(dir, &args)).unwrap()
}

/// A command that must fail, with these words in one sentence.
fn refused(dir: &Dir, args: &[&str], code: i32, words: &[&str]) {
    let (got, out, err) = told(&image(dir, args).output().unwrap());
    assert_eq!((got, &*out), (code, ""), "{args:?}: {err}");
    assert_eq!(
        err.lines().filter(|line| line.starts_with("error: ")).count(),
        1,
        "{err}"
    );
    for word in words {
        assert!(err.contains(word), "{args:?} does not say {word:?}: {err}");
    }
}

#[test]
fn an_image_that_was_pulled_is_listed() {
    let dir = Dir::new();
    assert_eq!(json(&dir, &["ls"]), Value::Array(Vec::new()));
    let of = make_layout(&dir.join("layout"), "of", &[&[("a", &[1; 90_000])]]).to_string();
    let platform = ["--platform", "linux/amd64"];
    let pulled = json(&dir, &["pull", &of, platform[0], platform[1]]);
    assert_eq!(json(&dir, &["ls"])[0]["digest"], pulled["digest"]);
    assert_eq!(
        (&pulled["kind"], &pulled["reference"]),
        (&"converted".into(), &of.clone().into())
    );
    let table = ok(&dir, &["ls"]);
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with(&of) && line.contains("converted"), "{table}");
    assert!(dir.join("data/images/version").exists());
    let nowhere = format!("oci:{}:none", dir.join("layout").display());
    refused(&dir, &["pull", &nowhere], 1, &["none", "of"]);
}

/// Mounted in a sandbox, with our daemon and with the genuine one.
#[test]
fn an_image_that_a_sandbox_uses_stays_by_name_and_by_content() {
    for daemon in [None, peer("nydusd")] {
        let s = Sandboxes::new();
        let dir = &s.dir;
        let of = make_layout(&dir.join("layout"), "of", &[&[("a", &[1; 90_000])]]).to_string();
        ok(dir, &["pull", &of, "--platform", "linux/amd64"]);
        let images = dir.join("data/images");
        let bootstrap = std::fs::read_dir(images.join("bootstraps"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let config = serde_json::json!({
            "version": 2, "id": "x",
            "backend": {"type": "localfs", "localfs": {"dir": images.join("blobs/sha256")}},
            "cache": {"type": "blobcache", "filecache": {"work_dir": dir.join("data/cache")}},
            "rafs": {"mode": "direct", "enable_xattr": true}
        });
        let file = dir.join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        s.start("s1", daemon.as_deref());
        s.mount("s1", "c1", &(text(&bootstrap), text(&file)));
        refused(dir, &["rm", &of], 5, &[&of, "in use by sandbox s1"]);
        // A newer image under its name does not make it nobody's.
        make_layout(&dir.join("layout"), "of", &[&[("b", &[2; 90_000])]]);
        ok(dir, &["pull", &of, "--platform", "linux/amd64"]);
        assert_eq!(json(dir, &["gc"])["images"]["files"], 0);
        s.ok(&["umount", "s1", "c1"]);
        assert_eq!(json(dir, &["gc", "--dry-run"])["images"]["files"], 5);
        assert!(ok(dir, &["gc"]).starts_with("5 files, "));
        assert!(ok(dir, &["rm", &of]).starts_with(&format!("{of}: removed")));
        assert_eq!(json(dir, &["ls"]), Value::Array(Vec::new()));
        s.ok(&["stop", "s1"]);
    }
}

/// The data is gone from the registry's disk, and nobody misses it before it is read.
#[test]
fn of_an_image_in_a_registry_only_what_mounting_takes_is_pulled() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let layout = dir.join("layout");
    let of = make_layout(&layout, "of", &[&[("a", &[1; 90_000])]]).to_string();
    let nydus = format!("oci:{}:nydus", layout.display());
    ok(&dir, &["convert", &of, &nydus, "--platform", "linux/amd64"]);
    let there = |tag: &str| format!("docker://{}/{tag}", registry.host());
    for (from, tag) in [(&of, "of"), (&nydus, "nydus")] {
        skopeo.copy(from, &there(tag));
    }
    let blobs = std::fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(Result::unwrap);
    let manifests = blobs.filter_map(|blob| {
        let manifest: Value = serde_json::from_slice(&std::fs::read(blob.path()).unwrap()).ok()?;
        manifest["layers"].as_array().cloned()
    });
    let data = manifests
        .flatten()
        .find(|layer| layer["mediaType"].as_str().unwrap().contains("nydus.blob"));
    let data = data.unwrap()["digest"].as_str().unwrap().to_owned();
    std::fs::remove_file(registry.blob_file(&data)).unwrap();

    let pulled = json(&dir, &["pull", &there("nydus"), "--platform", "linux/amd64"]);
    assert_eq!(pulled["kind"], "remote");
    let (_, hex) = data.split_once(':').unwrap();
    assert!(!dir.join("data/images/blobs/sha256").join(hex).exists());
    let native = ["--platform", "linux/amd64", "--convert", "native"];
    let converted = json(&dir, &[&["pull", &there("of")], &native[..]].concat());
    assert_eq!(converted["kind"], "converted");
    assert!(
        dir.join("data/images/blobs/sha256").join(hex).exists(),
        "the same layer is the same blob"
    );
    assert_eq!(json(&dir, &["ls"]).as_array().unwrap().len(), 2);
    ok(&dir, &["rm", &there("of")]);
    assert!(!dir.join("data/images/blobs/sha256").join(hex).exists());
}

#[test]
fn data_that_is_here_stays_for_its_other_name_though_a_registry_has_the_same_image() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let layout = dir.join("layout");
    let of = make_layout(&layout, "of", &[&[("a", &[1; 90_000])]]).to_string();
    let nydus = format!("oci:{}:nydus", layout.display());
    ok(&dir, &["convert", &of, &nydus, "--platform", "linux/amd64"]);
    let other = make_layout(&layout, "other", &[&[("a", &[1; 90_000])]]).to_string();
    let there = |tag: &str| format!("docker://{}/{tag}", registry.host());
    let platform = ["--platform", "linux/amd64"];
    // Several, so that whichever is looked at last is one of those.
    for tag in ["a", "b", "c", "d", "e", "f", "g"] {
        skopeo.copy(&nydus, &there(tag));
        ok(&dir, &["pull", &there(tag), platform[0], platform[1]]);
    }
    for name in [&of, &other] {
        ok(&dir, &["pull", name, platform[0], platform[1]]);
    }
    let images = json(&dir, &["ls"]);
    let digests: std::collections::BTreeSet<_> = images
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["digest"].as_str().unwrap())
        .collect();
    assert_eq!((images.as_array().unwrap().len(), digests.len()), (9, 1));
    let blobs = || {
        std::fs::read_dir(dir.join("data/images/blobs/sha256"))
            .unwrap()
            .count()
    };
    let before = blobs();
    ok(&dir, &["rm", &of]);
    assert_eq!(blobs(), before);
    assert_sound(&dir.join("data/images"));
    ok(&dir, &["rm", &other]);
    assert_eq!(blobs(), before - 2, "the data and the bootstrap's layer");
}

/// Blobs in the cache, by the start of their names.
fn cached(dir: &Dir) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("data/cache")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut blobs: Vec<_> = names
        .filter_map(|name| Some(name.strip_suffix(".blob.data")?.to_owned()))
        .collect();
    blobs.sort();
    blobs
}

/// With our daemon and with the genuine one: both mount two images, of which one is unmounted again.
#[test]
fn what_is_cached_goes_down_to_the_quota_but_for_what_is_mounted() {
    for daemon in [None, peer("nydusd")] {
        let s = Sandboxes::new();
        let dir = &s.dir;
        s.start("s1", daemon.as_deref());
        for (container, byte) in [("c1", 1), ("c2", 2)] {
            let content: Vec<u8> = (0..200_000_u32)
                .map(|i| byte ^ i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
                .collect();
            let source = dir.mkdir(&format!("source-{container}"));
            std::fs::write(source.join("file"), content).unwrap();
            let built = dir.join(container);
            ok(dir, &["build", &text(&source), &text(&built)]);
            let config = serde_json::json!({
                "version": 2, "id": container,
                "backend": {"type": "localfs", "localfs": {"dir": built.join("blobs")}},
                "cache": {"type": "blobcache", "filecache": {"work_dir": dir.mkdir("data/cache")}},
                "rafs": {"mode": "direct", "enable_xattr": true, "prefetch": {"enable": true, "prefetch_all": true}}
            });
            let file = dir.join("config.json");
            std::fs::write(&file, config.to_string()).unwrap();
            s.mount("s1", container, &(text(&built.join("image.boot")), text(&file)));
        }
        let both = cached(dir);
        assert_eq!(both.len(), 2);
        let all_used = json(dir, &["gc", "--quota", "0"]);
        assert_eq!(
            all_used["cache"]["in_use_bytes"],
            all_used["cache"]["after_bytes"]
        );
        assert_eq!(cached(dir), both);
        s.ok(&["umount", "s1", "c1"]);
        let would = json(dir, &["gc", "--quota", "0", "--dry-run"]);
        assert_eq!(cached(dir), both);
        let done = json(dir, &["gc", "--quota", "0"]);
        assert_eq!(done["cache"]["blobs"], would["cache"]["blobs"]);
        let left = cached(dir);
        assert_eq!(left.len(), 1);
        assert_eq!(done["cache"]["blobs"].as_array().unwrap().len(), 1);
        assert!(done["cache"]["blobs"][0] != left[0].as_str());
        s.ok(&["stop", "s1"]);
        assert!(ok(dir, &["gc", "--quota", "1G"]).contains("0 blobs removed"));
        assert_eq!(cached(dir), left);
        ok(dir, &["gc", "--quota", "0"]);
        assert_eq!(cached(dir), [""; 0]);
    }
}

#[test]
fn a_cache_of_more_blobs_than_there_are_descriptors_goes_down_to_its_quota() {
    let dir = Dir::new();
    let cache = dir.mkdir("data/cache");
    for blob in 0..200 {
        std::fs::write(cache.join(format!("{blob}.blob.data")), [1; 4096]).unwrap();
    }
    let gc = image(&dir, &["gc", "--quota", "409600"]);
    let few = Command::new("sh")
        .args(["-c", "ulimit -n 32; exec \"$0\" \"$@\""])
        .arg(gc.get_program())
        .args(gc.get_args())
        .envs(gc.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .unwrap();
    assert!(few.status.success(), "{:?}", told(&few));
    assert_eq!(cached(&dir).len(), 100);
}

/// Everything that has a name in the store is what its name says, and what a record names is there.
fn assert_sound(images: &Path) {
    let names = |part: &str| {
        let entries = std::fs::read_dir(images.join(part)).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect::<Vec<_>>()
    };
    for blob in names("blobs/sha256") {
        let content = std::fs::read(images.join("blobs/sha256").join(&blob)).unwrap();
        assert_eq!(sha256_of(&content).digest(), blob);
    }
    for record in names("refs") {
        let record: Value =
            serde_json::from_slice(&std::fs::read(images.join("refs").join(record)).unwrap()).unwrap();
        let (_, image) = record["digest"].as_str().unwrap().split_once(':').unwrap();
        assert!(images.join("blobs/sha256").join(image).exists());
        let bootstrap = std::fs::metadata(images.join("bootstraps").join(image)).unwrap();
        assert_eq!(bootstrap.len(), record["bootstrap_bytes"].as_u64().unwrap());
    }
}

/// strace does the killing, as the n-th call of a kind is entered.
#[test]
fn killed_at_any_step_a_pull_leaves_nothing_wrong_and_the_next_one_succeeds() {
    let Ok(strace) = require_program("strace") else {
        return;
    };
    let dir = Dir::new();
    let images = dir.join("data/images");
    let of = make_layout(&dir.join("layout"), "of", &[&[("a", &[1; 5000])], &[("b", b"2")]]).to_string();
    let pull = ["image", "pull", &of, "--platform", "linux/amd64"];
    let mut kills = 0;
    for call in [
        "flock",
        "mkdir",
        "fsync",
        "rename",
        "renameat",
        "renameat2",
        "unlink",
        "unlinkat",
        "rmdir",
    ] {
        for step in 1.. {
            let _fresh = std::fs::remove_dir_all(&images);
            let output = Command::new(&strace)
                .args([
                    "-f",
                    "-qq",
                    "-o",
                    "/dev/null",
                    "-e",
                    &format!("trace={call}"),
                    "-e",
                ])
                .arg(format!("inject={call}:signal=KILL:when={step}"))
                .arg(env!("CARGO_BIN_EXE_nydusbox"))
                .args(pull)
                .env("NYDUSBOX_DATA_DIR", dir.join("data"))
                .output()
                .unwrap();
            assert_sound(&images);
            if output.status.success() {
                break;
            }
            assert_eq!(
                output.status.signal(),
                Some(9),
                "{call} {step}: {:?}",
                told(&output)
            );
            kills += 1;
            ok(&dir, &pull[1..]);
            assert_sound(&images);
            assert_eq!(std::fs::read_dir(images.join("work")).unwrap().count(), 0);
        }
    }
    assert!(kills > 15, "{kills}");
}

#[test]
fn a_store_without_room_says_so_and_keeps_what_is_complete() {
    let dir = Dir::new();
    let mut state = 1_u64;
    let mut noise = vec![0; 3_000_000];
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    let small = make_layout(&dir.join("layout"), "small", &[&[("a", b"1")]]).to_string();
    let large = make_layout(&dir.join("layout"), "large", &[&[("b", b"2")], &[("c", &noise)]]).to_string();
    let Some(disk) = SmallDisk::mount(dir.join("data"), "2m") else {
        return;
    };
    ok(&dir, &["pull", &small, "--platform", "linux/amd64"]);
    let pull = ["pull", &large, "--platform", "linux/amd64"];
    refused(&dir, &pull, 1, &["no space left in the image store"]);
    let images = disk.path().join("images");
    assert_sound(&images);
    assert_eq!(std::fs::read_dir(images.join("work")).unwrap().count(), 0);
    assert_eq!(json(&dir, &["ls"])[0]["reference"], small);
    ok(&dir, &["pull", &small, "--platform", "linux/amd64"]);
}
