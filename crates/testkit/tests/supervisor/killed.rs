//! A supervisor in a process of its own, to be killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nydusbox::protocol::ContainerId;
use nydusbox::{MountRequest, Program, ProgramKind};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::mounts::mounts_below;
use crate::supervisor::{MARK, Place};

/// The steps of one sandbox, done by another process.
pub(crate) struct Supervised {
    child: Child,
}

/// The command that takes the sandbox `s1` of a place through some steps.
pub(crate) fn command(place: &Place, program: &Program, behaviour: &str, steps: &[&str]) -> Command {
    let kind = match program.kind() {
        ProgramKind::Embedded => "embedded",
        ProgramKind::Stock => "stock",
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_supervised"));
    command
        .arg(place.root())
        .arg(kind)
        .arg(program.exe())
        .args(steps)
        .env(MARK, place.root())
        .env("FAKE_DAEMON", behaviour);
    command
}

impl Supervised {
    /// Starts it and waits until it has done all its steps.
    pub(crate) fn after(place: &Place, program: &Program, steps: &[&str]) -> Self {
        Self::with_a(place, program, "serve", steps)
    }

    /// As [`Supervised::after`], with a fake daemon that behaves so.
    pub(crate) fn with_a(place: &Place, program: &Program, behaviour: &str, steps: &[&str]) -> Self {
        Self::before(place, program, behaviour, steps, "hold")
    }

    /// As [`Supervised::with_a`], and it has one more step to do.
    pub(crate) fn before(
        place: &Place,
        program: &Program,
        behaviour: &str,
        steps: &[&str],
        last: &str,
    ) -> Self {
        let mut child = command(place, program, behaviour, &[steps, &[last]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for step in steps {
            assert_eq!(lines.next().map(Result::unwrap).as_deref(), Some(*step));
        }
        Self { child }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A place with what one sandbox needs: a share, a snapshot with a file in it, and an image the fake daemon takes.
pub(crate) struct Scene {
    pub(crate) place: Place,
}

impl Drop for Scene {
    /// A test that fails leaves its processes to nobody else.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill_daemon();
        }
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        let place = Place::new();
        for dir in ["snapshot/fs", "snapshot/work", "state"] {
            std::fs::create_dir_all(place.path(dir)).unwrap();
        }
        std::fs::write(place.path("snapshot/fs/precious"), "x").unwrap();
        std::fs::write(place.path("share/precious"), "x").unwrap();
        std::fs::write(place.path("config"), "{}").unwrap();
        std::fs::write(place.path("bootstrap"), "").unwrap();
        Self { place }
    }

    pub(crate) fn request(&self, container: &str) -> MountRequest {
        MountRequest::rafs_with_snapshotdir(
            &ContainerId::new(container).unwrap(),
            self.place.path("bootstrap"),
            std::fs::read_to_string(self.place.path("config")).unwrap(),
            self.place.path("snapshot"),
        )
        .unwrap()
    }

    /// Where something is bound in the share.
    pub(crate) fn binds(&self) -> Vec<String> {
        mounts_below(&self.place.share())
    }

    /// Kills the daemon that nobody supervises, and waits for its end.
    pub(crate) fn kill_daemon(&self) {
        for line in self.place.processes() {
            let number = line.split('"').nth(1).unwrap().parse().unwrap();
            if let Ok(pidfd) = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
            }
        }
    }

    /// Has the daemon that nobody supervises stop where it is, or go on.
    pub(crate) fn signal_daemon(&self, signal: Signal) {
        for line in self.place.processes() {
            let number = line.split('"').nth(1).unwrap().parse().unwrap();
            let pidfd = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()).unwrap();
            pidfd_send_signal(&pidfd, signal).unwrap();
        }
    }

    /// Waits for the end of what ends by itself: the guardian of a stock daemon.
    pub(crate) fn wait_until_alone(&self) {
        for line in self.place.processes() {
            let number = line.split('"').nth(1).unwrap().parse().unwrap();
            if let Ok(pidfd) = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()) {
                rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
            }
        }
    }

    /// Waits until the sandbox's document says so.
    pub(crate) fn wait_until_written(&self, text: &str) {
        let state = self.place.path("state/s1/state.json");
        while !std::fs::read_to_string(&state).unwrap().contains(text) {
            std::thread::yield_now();
        }
    }

    /// Asks the daemon for something it does not have.
    pub(crate) fn ask_the_daemon(&self, target: &str) {
        let mut stream = UnixStream::connect(self.place.path("state/s1/api.sock")).unwrap();
        write!(stream, "PUT {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    }

    /// Every file of the state directory and the share with its size, and every bind.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut found = self.binds();
        let mut dirs = vec![self.place.path("state"), self.place.share()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let metadata = entry.metadata().unwrap();
                found.push(format!("{} {}", entry.path().display(), metadata.len()));
                if metadata.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }

    /// Nothing of a sandbox is left, and everything of the user's is there.
    pub(crate) fn assert_clean(&self) {
        self.place.assert_clean();
        assert_eq!(self.binds(), Vec::<String>::new(), "left bound");
        let names = |dir: &str| -> Vec<_> {
            let entries = std::fs::read_dir(self.place.path(dir)).unwrap();
            entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        assert_eq!(names("share"), ["precious"]);
        assert_eq!(names("snapshot/fs"), ["precious"]);
        let mut snapshot = names("snapshot");
        snapshot.sort();
        assert_eq!(snapshot, ["fs", "work"]);
    }
}
