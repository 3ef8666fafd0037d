//! What a test must not leave behind: children (zombies too), mounts, files and sockets, descriptors.
//!
//! Take a [`LeakGuard`] first, so that it is dropped last. It looks at the whole process, so it is
//! only right where each test has a process of its own, as under nextest.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Compares the end of a test with its start; panics on drop with everything that was left.
#[derive(Debug)]
pub struct LeakGuard {
    dir: PathBuf,
    allowed: Vec<String>,
    before: Holdings,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Holdings {
    children: BTreeSet<String>,
    mounts: BTreeSet<String>,
    files: BTreeSet<String>,
    fds: BTreeSet<String>,
}

impl LeakGuard {
    /// Remembers what there is now; `dir` is where the test's daemons put their sockets.
    ///
    /// # Errors
    /// What reading /proc or the directory said.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            allowed: Vec::new(),
            before: Holdings::now(dir)?,
        })
    }

    /// A file of this name may stay in the directory: a log, an image.
    #[must_use]
    pub fn allow(mut self, name: &str) -> Self {
        self.allowed.push(name.to_owned());
        self
    }

    /// Everything that is there now and was not at the start, a line each.
    ///
    /// # Errors
    /// What reading /proc or the directory said.
    pub fn leaks(&self) -> io::Result<Vec<String>> {
        let now = Holdings::now(&self.dir)?;
        let mut out = Vec::new();
        let mut report = |what: &str, before: &BTreeSet<String>, now: &BTreeSet<String>| {
            out.extend(now.difference(before).map(|left| format!("{what}: {left}")));
        };
        report("child process", &self.before.children, &now.children);
        report("mount", &self.before.mounts, &now.mounts);
        let files = now
            .files
            .into_iter()
            .filter(|f| !self.allowed.contains(f))
            .collect();
        report("file", &self.before.files, &files);
        report("descriptor", &self.before.fds, &now.fds);
        Ok(out)
    }
}

impl Drop for LeakGuard {
    fn drop(&mut self) {
        // A failing test is not made clearer by a second panic, which would abort.
        if std::thread::panicking() {
            return;
        }
        match self.leaks() {
            Ok(leaks) => assert!(leaks.is_empty(), "left behind:\n  {}", leaks.join("\n  ")),
            Err(error) => panic!("look for leaks: {error}"),
        }
    }
}

impl Holdings {
    fn now(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            children: children()?,
            mounts: mounts(dir)?,
            files: files(dir)?,
            fds: fds()?,
        })
    }
}

/// `pid (name) state` of every process whose parent we are.
fn children() -> io::Result<BTreeSet<String>> {
    let us = std::process::id().to_string();
    let mut out = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        // Processes come and go while we look.
        let Ok(stat) = entry.and_then(|e| fs::read_to_string(e.path().join("stat"))) else {
            continue;
        };
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = rest.split(' ');
        if let (Some(state), Some(parent)) = (fields.next(), fields.next())
            && parent == us
        {
            out.insert(format!("{name}) {state}"));
        }
    }
    Ok(out)
}

fn mounts(dir: &Path) -> io::Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let at = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    Ok(table
        .lines()
        .filter_map(at)
        .filter(|m| Path::new(m).starts_with(&dir))
        .collect())
}

fn files(dir: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(e) => Err(e),
    }
}

fn fds() -> io::Result<BTreeSet<String>> {
    let mut out = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The descriptor of this very listing is gone afterwards, and its link says so.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if !(target.starts_with("/proc") && target.ends_with("fd")) {
            out.insert(format!(
                "{} -> {}",
                entry.file_name().to_string_lossy(),
                target.display()
            ));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn each_kind_of_leak_is_named_and_gone_again() {
        let dir = tempfile::tempdir().unwrap();
        let guard = LeakGuard::new(dir.path()).unwrap().allow("daemon.log");
        fs::write(dir.path().join("daemon.log"), "").unwrap();
        assert_eq!(guard.leaks().unwrap(), Vec::<String>::new());

        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("api.sock")).unwrap();
        let mut zombie = std::process::Command::new("true").spawn().unwrap();
        let leaks = guard.leaks().unwrap();
        for (kind, name) in [
            ("child process", "true"),
            ("file", "api.sock"),
            ("descriptor", "socket:"),
        ] {
            // The child may still be on its way to exec, with our own name.
            let named = |l: &String| l.starts_with(kind) && (kind == "child process" || l.contains(name));
            assert!(leaks.iter().any(named), "{kind} {name} in {leaks:?}");
        }
        zombie.wait().unwrap();
        drop(socket);
        fs::remove_file(dir.path().join("api.sock")).unwrap();
        assert_eq!(guard.leaks().unwrap(), Vec::<String>::new());
    }
}
