//! `nydusbox image convert` to a registry that fails, or is not heard of again: one sentence, nothing under the tag, and
//! what is complete is not sent again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Dir, nydusbox, told};
use layout::make_layout;
use nydusbox_testkit::registry::{Registry, RegistryOptions};
use nydusbox_testkit::registry_proxy::{Asked, Fault, Part, RegistryProxy, TokenRules};
use nydusbox_testkit::suite::small_disk::SmallDisk;
use rustix::process::{Pid, Signal, kill_process};

const REPOSITORY: &str = "team/app";
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// A registry that says nothing is given up after 30 s, and asked again after that.
const SOONER_THAN_SILENCE_ENDS: Duration = Duration::from_secs(20);

/// A registry behind a proxy, and an image of two layers, one of them sent in several pieces.
struct Site {
    registry: Registry,
    proxy: RegistryProxy,
    dir: Dir,
    source: String,
}

impl Site {
    fn new() -> Option<Self> {
        Self::of(Registry::start(RegistryOptions::default()).ok()?)
    }

    fn of(registry: Registry) -> Option<Self> {
        let dir = Dir::new();
        let mut state = 1_u64;
        let mut noise = vec![0; 10_000_000];
        noise.fill_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        });
        let layers: [layout::Files<'_>; 2] = [&[("a", &[1; 5000])], &[("b", &noise)]];
        let source = make_layout(&dir.join("layout"), "of", &layers).to_string();
        Some(Self {
            proxy: RegistryProxy::start(registry.address()).unwrap(),
            registry,
            dir,
            source,
        })
    }

    fn destination(&self) -> String {
        format!("docker://{}/{REPOSITORY}:nydus", self.proxy.host())
    }

    fn push(&self) -> Command {
        let mut command = nydusbox();
        command
            .args(["image", "convert", "--platform", "linux/amd64", &self.source])
            .arg(self.destination())
            .env("DOCKER_CONFIG", self.dir.path())
            .env("TMPDIR", self.dir.path());
        command
    }

    fn started(&self) -> Child {
        self.push()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A push that succeeds, and sends nothing that the registry had.
    fn succeeds(&self) {
        let had: BTreeSet<_> = self.registry.blobs_of(REPOSITORY).into_iter().collect();
        self.proxy.forget();
        let (code, out, err) = told(&self.push().output().unwrap());
        assert_eq!((code, &*err), (0, ""), "{out}");
        let sent = ended(&self.proxy.asked());
        assert!(
            sent.is_disjoint(&had),
            "sent again: {:?}",
            sent.intersection(&had)
        );
        assert!(self.registry.has_tag(REPOSITORY, "nydus"));
        let left = self.dir.names();
        assert_eq!(left, ["layout"], "nothing is left of what was under way");
    }

    /// A push that fails with these words, in one sentence.
    fn fails(&self, words: &[&str]) {
        let (code, out, err) = told(&self.push().output().unwrap());
        assert_eq!((code, &*out), (1, ""), "{err}");
        let errors: Vec<_> = err.lines().filter(|line| line.starts_with("error: ")).collect();
        let others = err
            .lines()
            .any(|line| !line.starts_with("error: ") && !line.starts_with("hint: "));
        assert!(errors.len() == 1 && !others, "{err}");
        for word in words {
            assert!(err.contains(word), "it does not say {word:?}: {err}");
        }
        assert!(!self.registry.has_tag(REPOSITORY, "nydus"));
        assert_eq!(self.dir.names(), ["layout"]);
    }
}

/// The digests of uploads that were ended, as far as the registry said so.
fn ended(asked: &[Asked]) -> BTreeSet<String> {
    let ends = asked
        .iter()
        .filter(|asked| asked.part == Part::EndUpload && asked.status == Some(201));
    ends.map(|end| {
        let (_, digest) = end.path.split_once("digest=sha256%3A").unwrap();
        format!("sha256:{digest}")
    })
    .collect()
}

fn status(status: u16) -> Fault {
    Fault::status(status)
}

#[test]
fn what_a_registry_refuses_is_said_with_what_can_be_done() {
    let Some(site) = Site::new() else { return };
    let host = site.proxy.host();
    let forever = 100;
    // In the order in which less and less is left to be sent.
    for (part, fault, words) in [
        (
            Part::BeginUpload,
            status(403),
            &[
                &*format!("registry {host} gives no permission to push to {REPOSITORY}"),
                "--authfile",
            ][..],
        ),
        (
            Part::BeginUpload,
            status(404),
            &[&*format!("registry {host} has no repository {REPOSITORY}")],
        ),
        (
            Part::UploadPiece,
            status(413),
            &["too large for it", "client_max_body_size"],
        ),
        (
            Part::EndUpload,
            Fault::Status {
                status: 429,
                retry_after_seconds: Some(3600),
            },
            &["limits how often it is asked", "3600 s", "try again later"],
        ),
        (
            Part::EndUpload,
            Fault::WrongDigest,
            &["says that it has stored sha256:000"],
        ),
        (
            Part::PutManifest,
            status(403),
            &["gives no permission to push to"],
        ),
        (
            Part::PutManifest,
            Fault::WrongDigest,
            &["says that it has stored sha256:000", "manifest nydus"],
        ),
    ] {
        site.proxy.fail_next(part, fault, forever);
        if fault == Fault::WrongDigest && part == Part::PutManifest {
            // It has taken it all the same.
            let (code, _, err) = told(&site.push().output().unwrap());
            assert!(code == 1 && words.iter().all(|word| err.contains(word)), "{err}");
        } else {
            site.fails(words);
        }
        site.proxy.fail_next(part, fault, 0);
        assert_eq!(
            site.registry.uploads_of(REPOSITORY),
            Vec::<String>::new(),
            "{part:?} {fault:?}"
        );
    }
    site.succeeds();
}

#[test]
fn what_fails_for_the_moment_costs_no_push() {
    let Some(site) = Site::new() else { return };
    for (part, fault) in [
        (Part::Blob, status(503)),
        (Part::BeginUpload, status(500)),
        (Part::UploadPiece, status(502)),
        (
            Part::UploadPiece,
            Fault::Status {
                status: 429,
                retry_after_seconds: Some(0),
            },
        ),
        (Part::EndUpload, status(500)),
        (Part::PutManifest, status(503)),
        // In the middle of a piece, and when the registry has done what it was asked.
        (Part::UploadPiece, Fault::CutRequest(1_000_000)),
        (Part::UploadPiece, Fault::Unheard),
        (Part::BeginUpload, Fault::Unheard),
        (Part::EndUpload, Fault::Unheard),
        (Part::PutManifest, Fault::Unheard),
    ] {
        site.proxy.fail_next(part, fault, 1);
    }
    let (code, out, err) = told(&site.push().output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(site.registry.has_tag(REPOSITORY, "nydus"));
    site.succeeds();
}

#[test]
fn a_token_that_expires_in_the_middle_is_renewed() {
    let Some(site) = Site::new() else { return };
    site.proxy.demand_tokens(Some(TokenRules {
        requests_per_token: 3,
        credentials: None,
    }));
    let (code, out, err) = told(&site.push().output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{out}");
    let asked = site.proxy.asked();
    let tokens = asked.iter().filter(|asked| asked.part == Part::Token).count();
    assert!(tokens > 3, "{tokens}");
    assert!(
        asked
            .iter()
            .filter(|asked| asked.part == Part::Token)
            .any(|asked| asked.path.contains("pull%2Cpush"))
    );
}

#[test]
fn a_registry_whose_disk_is_full_says_so_and_keeps_what_is_complete() {
    let dir = Dir::new();
    let Some(disk) = SmallDisk::mount(dir.join("disk"), "6m") else {
        return;
    };
    let Ok(registry) = Registry::start_on(RegistryOptions::default(), disk.path()) else {
        return;
    };
    let Some(site) = Site::of(registry) else { return };
    site.fails(&["with status 500", "no space left on device", "try again later"]);
    let complete = site.registry.blobs_of(REPOSITORY);
    assert!(!complete.is_empty(), "the small layer is there");
    drop(site);
}

/// The n-th request is never answered, and the process killed then.
#[test]
fn killed_at_any_step_a_push_leaves_no_tag_and_the_next_one_sends_no_complete_blob_again() {
    let mut steps = 0;
    loop {
        steps += 1;
        let Some(site) = Site::new() else { return };
        site.proxy.hold(Some(steps));
        let mut push = site.started();
        let pid = Pid::from_child(&push);
        let held = site.proxy.wait_until(DEADLINE, |asked| {
            asked.len() >= steps
                || asked
                    .iter()
                    .any(|asked| asked.part == Part::PutManifest && asked.status.is_some())
        });
        assert!(held, "step {steps}");
        let asked = site.proxy.asked();
        site.proxy.hold(None);
        if asked
            .iter()
            .any(|asked| asked.part == Part::PutManifest && asked.status.is_some())
        {
            assert!(push.wait().unwrap().success());
            break;
        }
        kill_process(pid, Signal::KILL).unwrap();
        push.wait().unwrap();
        assert!(!site.registry.has_tag(REPOSITORY, "nydus"), "step {steps}");
        // The dead one's directory of what was under way stays; that is the system's to remove.
        for name in site.dir.names().iter().filter(|name| *name != "layout") {
            std::fs::remove_dir_all(site.dir.join(name)).unwrap();
        }
        site.succeeds();
    }
    assert!(steps > 12, "{steps}");
}

#[test]
fn who_is_interrupted_leaves_no_upload_and_nothing_under_the_tag() {
    let Some(site) = Site::new() else { return };
    for (part, signal) in [
        (Part::UploadPiece, Signal::INT),
        (Part::EndUpload, Signal::TERM),
        (Part::PutManifest, Signal::INT),
    ] {
        site.proxy.forget();
        site.proxy.fail_next(part, Fault::Silence, 100);
        let push = site.started();
        let pid = Pid::from_child(&push);
        assert!(
            site.proxy
                .wait_until(DEADLINE, |asked| asked.iter().any(|asked| asked.part == part))
        );
        kill_process(pid, signal).unwrap();
        let (code, _, err) = told(&push.wait_with_output().unwrap());
        site.proxy.fail_next(part, Fault::Silence, 0);
        assert_eq!(code, 130, "{err}");
        assert!(!site.registry.has_tag(REPOSITORY, "nydus"));
        assert_eq!(
            site.registry.uploads_of(REPOSITORY),
            Vec::<String>::new(),
            "{part:?}"
        );
        assert_eq!(site.dir.names(), ["layout"]);
    }
    site.succeeds();
}

#[test]
fn who_interrupts_a_pull_does_not_wait_for_the_registry() {
    let Some(site) = Site::new() else { return };
    site.succeeds();
    for part in [Part::Manifest, Part::Blob] {
        site.proxy.forget();
        site.proxy.fail_next(part, Fault::Silence, 100);
        let data = Dir::new();
        let mut pull = nydusbox();
        pull.args(["image", "pull", "--platform", "linux/amd64", &site.destination()])
            .arg("--data-dir")
            .arg(data.path())
            .env("DOCKER_CONFIG", site.dir.path());
        let mut pull = pull
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let asked = site
            .proxy
            .wait_until(DEADLINE, |asked| asked.iter().any(|asked| asked.part == part));
        assert!(asked);
        kill_process(Pid::from_child(&pull), Signal::INT).unwrap();
        let ended = ends_within(&mut pull, SOONER_THAN_SILENCE_ENDS);
        site.proxy.fail_next(part, Fault::Silence, 0);
        assert!(ended, "{part:?}");
        let (code, _, err) = told(&pull.wait_with_output().unwrap());
        assert_eq!(code, 130, "{err}");
        assert!(err.lines().count() == 1 && err.ends_with("cancelled\n"), "{err}");
    }
}

fn ends_within(child: &mut Child, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn two_pushes_of_one_image_at_once_are_both_right() {
    let Some(site) = Site::new() else { return };
    let pushes = [site.started(), site.started()];
    let digests: Vec<_> = pushes
        .map(|push| {
            let (code, out, err) = told(&push.wait_with_output().unwrap());
            assert_eq!((code, &*err), (0, ""), "{out}");
            out.trim().rsplit(' ').next().unwrap().to_owned()
        })
        .into();
    assert_eq!(digests[0], digests[1]);
    let mut check = nydusbox();
    let (code, _, err) = told(
        &check
            .args(["image", "check", &site.destination()])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 0, "{err}");
}
