//! Everything that can happen to a cold image at once, for as long as one likes.
//!
//! Two daemons share a cache directory. The image's format goes by the seed, and so does whether the disk is one that is
//! too small for it, or one whose files are mapped.
//! Their guests read at random and compare every byte. Meanwhile the blob server refuses, breaks off, answers short,
//! is slow or stands still, the disk is filled up, cache files are truncated, and one of the daemons is stopped in the
//! middle of a request or killed and started again. Each READ must be right or fail with EIO, none may be stuck, and
//! at the end, when all is calm, everything must read right, with nothing left open.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::blob_server::{BlobServer, Conditions, Fault};
use crate::daemon::{DaemonProcess, Program};
use crate::guest::FuseClient;
use crate::guest::fuse::ops;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::packed::{self, Packing};
use crate::peers::{Peer, Skip, require};
use crate::suite::fixture::{Fixture, done, guest};
use crate::suite::small_disk::SmallDisk;
use crate::tree;

/// Kinds of images, by the seed; half of the seeds of each kind have a small disk.
const KINDS: u64 = 4;
/// Files of the image, and the length of each in bytes.
const FILES: u64 = 8;
const FILE: usize = 4 << 20;
/// Small files beside them.
const SMALL: u64 = 100;
/// The disk of the cache has room for the image, and for what is truncated and replaced; not for the filler too.
const DISK: &str = "64m";
const FILLER: usize = 64 << 20;
/// How long a daemon waits for an answer of the blob server.
const REQUEST_TIMEOUT_SECS: u64 = 3;
/// How much more memory a daemon may have at the end than after it has read everything once, in KiB.
const GROWTH_KIB: u64 = 48 << 10;

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    /// READs that gave the right bytes.
    pub right: u64,
    /// READs that failed with EIO.
    pub failed: u64,
    /// Mischief done.
    pub mischief: u64,
    /// Daemons killed or stopped in the middle of a request.
    pub killed: u64,
}

struct Stage<'a> {
    fixture: &'a Fixture,
    image: Image,
    server: BlobServer,
    cache: PathBuf,
    contents: Vec<Vec<u8>>,
    over: AtomicBool,
    right: AtomicU64,
    failed: AtomicU64,
}

/// An image of a kind that depends on the seed, so that it is the same again.
fn image_of(fixture: &Fixture, source: &Path, seed: u64) -> Result<Image, Skip> {
    let packing = match seed % KINDS {
        0 => Packing::Batch,
        1 => Packing::Zran,
        2 => return fixture.image(source, RafsVersion::V6),
        _ => return fixture.image(source, RafsVersion::V5),
    };
    let builder = require(Peer::NydusImage)?;
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    Ok(packed::build(&builder, source, &fixture.path("image"), packing).unwrap())
}

/// A generator of numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }
}

/// Runs it for a while.
///
/// # Errors
/// [`Skip`] without nydus-image.
///
/// # Panics
/// If a byte is wrong, a request stuck, or something left.
pub fn run(program: &Program, length: Duration, seed: u64) -> Result<Report, Skip> {
    let fixture = Fixture::new(program);
    let source = fixture.path("source");
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fs::create_dir(&source).unwrap();
    let sizes = (0..FILES).map(|_| FILE).chain((0..SMALL).map(|_| 12_345));
    let contents: Vec<Vec<u8>> = (1..)
        .zip(sizes)
        .map(|(seed, size)| tree::bytes(seed, size))
        .collect();
    for (n, content) in contents.iter().enumerate() {
        #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
        fs::write(source.join(format!("file-{n}")), content).unwrap();
    }
    let image = image_of(&fixture, &source, seed)?;
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    let server = BlobServer::start(&image.blobs).unwrap();
    // A small disk is in memory, where cache files are not mapped.
    let small = (seed / KINDS).is_multiple_of(2);
    let disk = small
        .then(|| SmallDisk::mount(fixture.path("disk"), DISK))
        .flatten();
    let cache = disk
        .as_ref()
        .map_or_else(|| fixture.path("cache"), |d| d.path().to_owned());
    let stage = Stage {
        fixture: &fixture,
        image,
        server,
        cache,
        contents,
        over: AtomicBool::new(false),
        right: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    #[expect(clippy::unwrap_used, reason = "nothing has filled the disk yet")]
    let daemon = stage.daemon(&fixture).unwrap();
    let mut fs = guest(&daemon);
    stage.read_everything(&mut fs);
    let before = Holdings::of(&daemon);
    let (mischief, killed) = thread::scope(|scope| {
        let mischief = scope.spawn(|| stage.make_mischief(Dice(seed), disk.is_some()));
        let unsteady = scope.spawn(|| stage.read_with_a_daemon_that_dies(Dice(seed + 1)));
        let reader = scope.spawn(|| stage.read_until_it_is_over(&mut fs, Dice(seed + 2)));
        let end = Instant::now() + length;
        while Instant::now() < end
            && !reader.is_finished()
            && !unsteady.is_finished()
            && !mischief.is_finished()
        {
            thread::sleep(Duration::from_millis(20));
        }
        stage.over.store(true, Ordering::SeqCst);
        let mischief = mischief.join();
        stage.calm_down();
        let killed = unsteady.join();
        assert!(
            reader.join().is_ok(),
            "a guest read what it should not have\n{}",
            daemon.output()
        );
        (mischief.unwrap_or_default(), killed.unwrap_or_default())
    });
    assert!(
        mischief > 0 && killed > 0,
        "nothing happened: {mischief}, {killed}"
    );
    stage.read_everything(&mut fs);
    assert_eq!(fs.guest().outstanding(), 0);
    assert!(daemon.is_alive(), "{}", daemon.output());
    before.assert_not_more(&Holdings::of(&daemon));
    Ok(Report {
        right: stage.right.into_inner(),
        failed: stage.failed.into_inner(),
        mischief,
        killed,
    })
}

#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
impl Stage<'_> {
    /// A daemon that has mounted the image; `None` if the disk is so full that there is no place for a new cache.
    fn daemon(&self, home: &Fixture) -> Option<DaemonProcess> {
        let daemon = home.daemon(&[]);
        let config = image::rafs_config_http_proxy(&self.server.address(), &self.cache);
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["backend"]["http-proxy"]["timeout"] = REQUEST_TIMEOUT_SECS.into();
        let body = mount_body("rafs", &self.image.bootstrap, &config.to_string());
        let answer = daemon.mount("/image", &body).unwrap();
        if answer.status == 500 && answer.body.contains("No space left") {
            return None;
        }
        done(&answer);
        Some(daemon)
    }

    fn node(fs: &mut FuseClient, file: usize) -> u64 {
        fs.resolve(format!("/image/file-{file}")).unwrap().nodeid
    }

    fn read_everything(&self, fs: &mut FuseClient) {
        for (n, content) in self.contents.iter().enumerate() {
            let read = fs.read_file(format!("/image/file-{n}"));
            assert!(read.unwrap() == *content, "file-{n} is wrong when all is calm");
        }
    }

    /// One READ: right, or EIO.
    fn read(&self, fs: &mut FuseClient, file: usize, node: u64, at: usize, size: u32) {
        let content = &self.contents[file];
        let expected = &content[at..content.len().min(at + size as usize)];
        match fs.read(node, 0, at as u64, size) {
            Ok(bytes) => {
                assert!(bytes == expected, "file-{file} has wrong bytes in {size} at {at}");
                self.right.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(
                    error.errno(),
                    Some(rustix::io::Errno::IO),
                    "file-{file} at {at}: {error:?}"
                );
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A few READs of one file, here and there or in order.
    fn read_somewhere(&self, fs: &mut FuseClient, dice: &mut Dice) {
        let file = usize::try_from(dice.roll(FILES + SMALL)).unwrap();
        let length = self.contents[file].len();
        let node = Self::node(fs, file);
        let mut at = usize::try_from(dice.roll(length as u64)).unwrap() & !4095;
        let size = 4096 << dice.roll(6);
        let in_order = dice.roll(2) == 0;
        for _ in 0..8 {
            self.read(fs, file, node, at, size);
            at = if in_order {
                at + size as usize
            } else {
                usize::try_from(dice.roll(length as u64)).unwrap() & !4095
            };
            if at >= length {
                return;
            }
        }
    }

    fn read_until_it_is_over(&self, fs: &mut FuseClient, mut dice: Dice) {
        while !self.over.load(Ordering::SeqCst) {
            self.read_somewhere(fs, &mut dice);
        }
    }

    /// Gives how many daemons were killed or stopped.
    fn read_with_a_daemon_that_dies(&self, mut dice: Dice) -> u64 {
        let home = Fixture::new(self.fixture.program());
        let mut ended = 0;
        while !self.over.load(Ordering::SeqCst) {
            let Some(daemon) = self.daemon(&home) else {
                continue;
            };
            let mut fs = guest(&daemon);
            for _ in 0..dice.roll(20) {
                self.read_somewhere(&mut fs, &mut dice);
            }
            let file = usize::try_from(dice.roll(FILES)).unwrap();
            let node = Self::node(&mut fs, file);
            for n in 0..4 {
                let _unanswered = fs.submit(ops::read(node, 0, n << 20, 4096)).unwrap();
            }
            if dice.roll(2) == 0 {
                // The other must not wait for what this one has locked.
                let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
                kill_process(pid, Signal::STOP).unwrap();
                thread::sleep(Duration::from_millis(dice.roll(3000)));
            }
            // With SIGKILL.
            drop(daemon);
            ended += 1;
        }
        ended
    }

    /// Gives how much.
    fn make_mischief(&self, mut dice: Dice, small_disk: bool) -> u64 {
        let filler = self.cache.join("filler");
        let mut count = 0;
        while !self.over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20 + dice.roll(200)));
            count += 1;
            match dice.roll(if small_disk { 9 } else { 8 }) {
                0 => {
                    let faults = [
                        Fault::Status(503),
                        Fault::Status(404),
                        Fault::Truncate,
                        Fault::Short,
                    ];
                    let fault = faults[usize::try_from(dice.roll(4)).unwrap()];
                    self.server.fail_next(fault, 1 + dice.roll(8));
                }
                1 => self.server.set_conditions(Conditions {
                    delay: Duration::from_millis(dice.roll(60)),
                    jitter: Duration::from_millis(dice.roll(60)),
                    fault_every: Some((Fault::Truncate, 5 + dice.roll(20))),
                    ..Conditions::default()
                }),
                2 => {
                    self.server.hold();
                    thread::sleep(Duration::from_millis(dice.roll(1500)));
                    self.server.release();
                }
                3 | 4 => truncate(&self.cache, ".blob.data", dice.roll(40 << 20)),
                5 => truncate(&self.cache, ".chunk_map", dice.roll(4110)),
                // Seen by the next that mounts.
                7 => truncate(&self.cache, ".blob.meta", dice.roll(5000)),
                6 => self.server.set_conditions(Conditions::default()),
                // Full, for a while.
                _ => {
                    let _cut_short = fs::write(&filler, vec![1; FILLER]);
                    thread::sleep(Duration::from_millis(dice.roll(1500)));
                    fs::remove_file(&filler).unwrap();
                }
            }
        }
        count
    }

    fn calm_down(&self) {
        self.server.fail_next(Fault::Short, 0);
        self.server.set_conditions(Conditions::default());
        self.server.release();
        let _gone = fs::remove_file(self.cache.join("filler"));
    }
}

/// Shortens a file of the cache; one that is shorter already stays as it is.
fn truncate(cache: &Path, ending: &str, to: u64) {
    let files = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    for path in files.filter(|p| p.to_string_lossy().ends_with(ending)) {
        // Both may be replaced at this very moment.
        let Ok(file) = OpenOptions::new().write(true).open(path) else {
            continue;
        };
        if file.metadata().is_ok_and(|m| m.len() > to) {
            let _truncated = file.set_len(to);
        }
    }
}

/// What a daemon has.
#[derive(Debug)]
struct Holdings {
    fds: usize,
    resident_kib: u64,
}

impl Holdings {
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn of(daemon: &DaemonProcess) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        Self {
            fds: daemon.open_fds().unwrap(),
            resident_kib: resident.trim().trim_end_matches("kB").trim().parse().unwrap(),
        }
    }

    fn assert_not_more(&self, later: &Self) {
        // Connections to the blob server come and go.
        assert!(later.fds <= self.fds + 16, "descriptors: {self:?}, {later:?}");
        assert!(
            later.resident_kib <= self.resident_kib + GROWTH_KIB,
            "memory: {self:?}, {later:?}"
        );
    }
}
