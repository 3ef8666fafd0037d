//! Registries and images that fail, break off or lie, for every command that reads them: one sentence, an exit code,
//! nothing half-made, and a next try that succeeds with what was complete.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Dir, nydusbox, told};
use layout::{make_layout, write_layout};
use nydusbox_image::source::{MediaType, sha256_of};
use nydusbox_testkit::machine::prerequisites;
use nydusbox_testkit::registry::{Registry, RegistryOptions};
use nydusbox_testkit::registry_proxy::{Fault, Part, RegistryProxy, TokenRules};
use nydusbox_testkit::suite::small_disk::SmallDisk;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// More often than anything is asked.
const ALWAYS: u64 = 10_000;

/// A command that reads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Convert,
    ConvertRef,
    Pull,
    Run,
}

const VERBS: [Verb; 4] = [Verb::Convert, Verb::ConvertRef, Verb::Pull, Verb::Run];

/// Where one command works.
struct Place {
    dir: Dir,
    /// What a machine boots from: `run` looks for it first.
    guest: PathBuf,
}

impl Place {
    fn new() -> Self {
        let guest = prerequisites::guest().map_or_else(PathBuf::new, |(guest, _)| guest);
        Self {
            dir: Dir::new(),
            guest,
        }
    }

    fn command(&self, verb: Verb, image: &str) -> Command {
        let mut command = nydusbox();
        command
            .env("NYDUSBOX_DATA_DIR", self.dir.join("data"))
            .env("NYDUSBOX_STATE_DIR", self.dir.join("state"))
            .env("TMPDIR", self.dir.mkdir("tmp"));
        let out = format!("oci:{}:out", self.dir.join("out").display());
        match verb {
            Verb::Convert => command.args(["image", "convert", image, &out]),
            Verb::ConvertRef => command.args(["image", "convert", "--mode", "ref", image, &out]),
            Verb::Pull => command.args(["image", "pull", image]),
            Verb::Run => command.args(["run", image]),
        };
        command.args(["--platform", "linux/amd64"]);
        if verb == Verb::Run {
            command
                .arg("--guest-root")
                .arg(&self.guest)
                .args(["--", "/bin/true"]);
        }
        command
    }

    /// The command fails with these words, and nothing is left that is not whole.
    #[track_caller]
    fn refused(&self, verb: Verb, image: &str, words: &[&str]) {
        if verb == Verb::Run && self.guest.as_os_str().is_empty() {
            return;
        }
        let (code, out, err) = told(&self.command(verb, image).output().unwrap());
        let expected = if verb == Verb::Run { 125 } else { 1 };
        assert_eq!((code, &*out), (expected, ""), "{verb:?} {words:?}: {err}");
        let lines: Vec<_> = err.lines().filter(|line| !line.starts_with("hint: ")).collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("error: "),
            "{verb:?}: {err}"
        );
        for word in words {
            assert!(err.contains(word), "{verb:?} does not say {word:?}: {err}");
        }
        // Nor of files that are there only while something is under way.
        assert!(!err.contains(".partial"), "{verb:?}: {err}");
        self.is_sound();
    }

    /// What has a name is what its name says, and no file is under way.
    #[track_caller]
    fn is_sound(&self) {
        let names = |path: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        for blobs in ["out/blobs/sha256", "data/images/blobs/sha256"] {
            for blob in names(&self.dir.join(blobs)) {
                let content = std::fs::read(self.dir.join(blobs).join(&blob)).unwrap();
                assert_eq!(sha256_of(&content).digest(), blob, "in {blobs}");
            }
        }
        let index = std::fs::read(self.dir.join("out/index.json")).unwrap_or_else(|_| b"{}".to_vec());
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert!(index["manifests"].as_array().is_none_or(Vec::is_empty), "{index}");
        for empty in [
            "tmp",
            "state",
            "data/images/work",
            "data/images/refs",
            "data/images/bootstraps",
        ] {
            assert_eq!(names(&self.dir.join(empty)), [""; 0], "in {empty}");
        }
    }

    #[track_caller]
    fn succeeds(&self, verb: Verb, image: &str) {
        // What a machine runs is another test's; what `run` takes of a registry is what `pull` does.
        let verb = if verb == Verb::Run { Verb::Pull } else { verb };
        let (code, _, err) = told(&self.command(verb, image).output().unwrap());
        assert_eq!((code, &*err), (0, ""), "{verb:?}");
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut noise = vec![0; bytes];
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    noise
}

/// A genuine registry with an image of two layers, and what stands before it.
struct Remote {
    proxy: RegistryProxy,
    image: String,
    _registry: Registry,
}

impl Remote {
    fn new(dir: &Dir) -> Option<Self> {
        let registry = Registry::start(RegistryOptions::default()).ok()?;
        let skopeo = nydusbox_testkit::skopeo::Skopeo::find().ok()?;
        let (first, second) = (noise(1, 200_000), noise(2, 300_000));
        let of = make_layout(&dir.join("of"), "of", &[&[("a", &first)], &[("b", &second)]]);
        let there = format!("docker://{}/team/app:1", registry.host());
        skopeo.copy(&of.to_string(), &there);
        let proxy = RegistryProxy::start(registry.address()).unwrap();
        Some(Self {
            image: format!("docker://{}/team/app:1", proxy.host()),
            proxy,
            _registry: registry,
        })
    }
}

fn status(status: u16) -> Fault {
    Fault::status(status)
}

#[test]
fn whatever_a_registry_does_is_one_sentence_and_the_next_try_succeeds() {
    let faults: [(Part, Fault, &[&str]); 15] = [
        (Part::Manifest, status(404), &["has no manifest", "team/app"]),
        (Part::Manifest, status(403), &["denies access to manifest"]),
        (Part::Manifest, status(500), &["status 500"]),
        (Part::Manifest, Fault::WrongContent, &["manifest"]),
        (Part::Manifest, Fault::CloseAfter(10), &["manifest"]),
        (
            Part::Blob,
            status(401),
            &["asks for credentials in no way that is known"],
        ),
        (Part::Blob, status(403), &["denies access to blob"]),
        (Part::Blob, status(404), &["has no blob"]),
        (Part::Blob, status(429), &["limits how often it is asked"]),
        (Part::Blob, status(503), &["status 503"]),
        (
            Part::Blob,
            Fault::Status {
                status: 429,
                retry_after_seconds: Some(3600),
            },
            &["asks to wait 3600 s"],
        ),
        (
            Part::Blob,
            Fault::CloseAfter(0),
            &["broke off blob", "after 0 bytes"],
        ),
        (Part::Blob, Fault::WrongContent, &["has the digest"]),
        (Part::Blob, Fault::TooShort, &["blob sha256:", "bytes"]),
        (Part::Blob, Fault::TooLong, &["blob sha256:", "bytes"]),
    ];
    let dir = Dir::new();
    let Some(remote) = Remote::new(&dir) else { return };
    for (part, fault, words) in faults {
        // At once: what is asked again is waited for.
        let places = VERBS.map(|verb| (verb, Place::new()));
        let each = |work: &(dyn Fn(Verb, &Place) + Sync)| {
            std::thread::scope(|scope| {
                for (verb, place) in &places {
                    scope.spawn(move || work(*verb, place));
                }
            });
        };
        remote.proxy.fail_next(part, fault, ALWAYS);
        each(&|verb, place| place.refused(verb, &remote.image, words));
        remote.proxy.fail_next(part, fault, 0);
        each(&|verb, place| place.succeeds(verb, &remote.image));
    }
}

#[test]
fn a_registry_that_is_down_or_shut_is_named_and_one_that_lets_in_again_is_used() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = Dir::new();
    let Some(remote) = Remote::new(&dir) else { return };
    let nobody = dir.join("config.json");
    std::fs::write(&nobody, "{}").unwrap();
    for verb in VERBS {
        let place = Place::new();
        let down = format!("docker://{gone}/team/app:1");
        place.refused(
            verb,
            &down,
            &[&format!("cannot reach registry {gone}"), "refused"],
        );
        // Nobody is let in without a password, and there is none.
        remote.proxy.demand_tokens(Some(TokenRules {
            requests_per_token: 100,
            credentials: Some(("someone".to_owned(), "secret".to_owned())),
        }));
        place.refused(verb, &remote.image, &["registry", "credentials"]);
        // Each token has expired when the next request comes.
        remote.proxy.demand_tokens(Some(TokenRules {
            requests_per_token: 1,
            credentials: None,
        }));
        place.succeeds(verb, &remote.image);
        remote.proxy.demand_tokens(None);
    }
}

/// The header of an entry that no archiver would write.
fn entry(kind: u8, path: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let bytes = header.as_mut_bytes();
    bytes[..path.len()].copy_from_slice(path);
    bytes[157..157 + link.len()].copy_from_slice(link);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn layout_of(dir: &Dir, tag: &str, layers: &[Vec<u8>]) -> String {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (MediaType::ImageLayer, layer.as_slice()))
        .collect();
    write_layout(&dir.join("of"), tag, &layers).to_string()
}

#[test]
fn layers_that_no_image_can_have_are_named_with_their_entry() {
    let good = || entry(b'0', b"good", b"", &noise(3, 100_000));
    let bad: [(&str, Vec<u8>, &[&str]); 8] = [
        (
            "climbs",
            entry(b'0', b"a/../../etc/passwd", b"", b"x"),
            &["a/../../etc/passwd", "\"..\""],
        ),
        (
            "link",
            entry(b'1', b"hard", b"../../etc/shadow", b""),
            &["hard", "\"..\""],
        ),
        (
            "nowhere",
            entry(b'1', b"hard", b"nothing", b""),
            &["hard", "link target"],
        ),
        (
            "through",
            [entry(b'0', b"file", b"", b""), entry(b'0', b"file/x", b"", b"")].concat(),
            &["file/x", "leads through a file"],
        ),
        (
            "circle",
            [
                entry(b'2', b"a", b"b", b""),
                entry(b'2', b"b", b"a", b""),
                entry(b'0', b"a/x", b"", b""),
            ]
            .concat(),
            &["a/x", "symbolic links"],
        ),
        (
            "volume",
            entry(b'V', b"label", b"", b""),
            &["label", "entry type 'V'"],
        ),
        ("cut", good()[..50_000].to_vec(), &["cannot be read to its end"]),
        ("text", b"no archive at all ".repeat(100), &["archive is damaged"]),
    ];
    let dir = Dir::new();
    for (tag, layer, words) in bad {
        let image = layout_of(&dir, tag, &[good(), layer]);
        for verb in VERBS {
            let place = Place::new();
            place.refused(verb, &image, words);
        }
    }
}

#[test]
fn absolute_and_linked_paths_stay_inside_and_devices_and_odd_names_are_kept() {
    let dir = Dir::new();
    let content = noise(4, 9000);
    let layer = [
        entry(b'0', b"/absolute", b"", b"1"),
        entry(b'2', b"out", b"/../../../tmp", b""),
        entry(b'0', b"out/through", b"", &content),
        entry(b'3', b"dev", b"", b""),
        entry(b'0', b"\xff\xfe\n", b"", b"2"),
    ];
    let image = layout_of(&dir, "odd", &[layer.concat()]);
    for verb in [Verb::Convert, Verb::ConvertRef, Verb::Pull] {
        Place::new().succeeds(verb, &image);
    }
    let place = Place::new();
    place.succeeds(Verb::Convert, &image);
    let out = format!("oci:{}:out", place.dir.join("out").display());
    let found = nydusbox()
        .args(["image", "inspect", "--json", &out])
        .output()
        .unwrap();
    let (code, found, err) = told(&found);
    assert_eq!((code, &*err), (0, ""));
    let found: Value = serde_json::from_str(&found).unwrap();
    // The link's directory is made below the root.
    assert_eq!(found["regular_files"], 3, "{found}");
    assert_eq!(
        (&found["symlinks"], &found["others"]),
        (&json!(1), &json!(1)),
        "{found}"
    );
}

/// A name, what it changes in a manifest, and words of the refusal.
type Lie<'a> = (&'a str, fn(&mut Value), &'a [&'a str]);

#[test]
fn manifests_that_lie_are_refused_with_what_is_wrong() {
    let dir = Dir::new();
    let lies: [Lie<'_>; 5] = [
        (
            "long",
            |m| m["layers"][0]["size"] = json!(999_999_999),
            &["ends after", "999999999"],
        ),
        (
            "short",
            |m| m["layers"][0]["size"] = json!(10),
            &["longer than the 10 bytes"],
        ),
        (
            "huge",
            |m| m["config"]["size"] = json!(1_u64 << 40),
            &["are not read"],
        ),
        (
            "missing",
            |m| m["layers"][0]["digest"] = json!(format!("sha256:{}", "0".repeat(64))),
            &["is missing"],
        ),
        (
            "path",
            |m| m["layers"][0]["digest"] = json!("sha256:../../../etc/passwd"),
            &["malformed"],
        ),
    ];
    for (tag, lie, words) in lies {
        let layout = dir.join(tag);
        let image = make_layout(&layout, tag, &[&[("a", &noise(5, 50_000))]]).to_string();
        let index = layout.join("index.json");
        let mut named: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
        let blobs = layout.join("blobs/sha256");
        let digest = named["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
        let mut manifest: Value =
            serde_json::from_slice(&std::fs::read(blobs.join(digest)).unwrap()).unwrap();
        lie(&mut manifest);
        let manifest = manifest.to_string();
        let digest = sha256_of(manifest.as_bytes());
        std::fs::write(blobs.join(digest.digest()), &manifest).unwrap();
        named["manifests"][0]["digest"] = json!(digest.to_string());
        named["manifests"][0]["size"] = json!(manifest.len());
        std::fs::write(index, named.to_string()).unwrap();
        for verb in VERBS {
            Place::new().refused(verb, &image, words);
        }
    }
}

#[test]
fn a_full_disk_is_said_to_be_one_and_nothing_stays_of_what_was_under_way() {
    let dir = Dir::new();
    let image = make_layout(&dir.join("of"), "of", &[&[("a", &noise(6, 3_000_000))]]).to_string();
    // Unpacked before anything is read of it.
    let archive = dir.join("archive");
    let packed = Command::new("tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(dir.join("of"))
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let archive = format!("oci-archive:{}", archive.display());
    for (image, verb, disk, words) in [
        (
            &image,
            Verb::Convert,
            "tmp",
            "no space left for what is under way",
        ),
        (&image, Verb::Convert, "out", "No space left"),
        (&image, Verb::Pull, "data", "no space left in the image store"),
        (&image, Verb::Run, "data", "no space left in the image store"),
        (&archive, Verb::Pull, "tmp", "no space left in"),
    ] {
        let place = Place::new();
        let Some(small) = SmallDisk::mount(place.dir.join(disk), "1m") else {
            return;
        };
        place.refused(verb, image, &[words]);
        drop(small);
        std::fs::remove_dir_all(place.dir.join(disk)).unwrap();
        place.succeeds(verb, image);
    }
}

#[test]
fn a_build_that_is_interrupted_says_so_and_leaves_nothing() {
    let dir = Dir::new();
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let hole = std::fs::File::create(tree.join("hole")).unwrap();
    // Long enough to be seen while it is read, which it is to its end.
    hole.set_len(256 << 20).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = nydusbox();
        command.args(["image", "build"]).arg(&tree).arg(dir.join("image"));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let descriptors = PathBuf::from(format!("/proc/{}/fd", child.id()));
        let reads = || {
            let links = std::fs::read_dir(&descriptors).into_iter().flatten().flatten();
            let mut files = links.flat_map(|link| std::fs::read_link(link.path()));
            files.any(|file| file.ends_with("hole"))
        };
        while !reads() {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let (code, _, err) = told(&child.wait_with_output().unwrap());
        assert_eq!(code, 130, "{err}");
        assert!(err.lines().count() == 1 && err.ends_with("cancelled\n"), "{err}");
        assert_eq!(dir.names(), ["tree"]);
    }
}
