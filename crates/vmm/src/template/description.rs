//! What a template is of: everything that must be the same for a machine to go on from it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// What makes a template another one. As text, so that it can be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    text: String,
    memory_bytes: u64,
}

/// The line that says which start of the host it is.
const START: &str = "host-start";

/// As many bytes of a hash are a key.
const KEY_LEN: usize = 12;

impl Description {
    /// Of a machine of `memory_bytes` that `qemu` runs with `arguments` (those that each machine has anew left out),
    /// from `kernel` and `initramfs`.
    pub(crate) fn new(
        qemu: &Path,
        arguments: &[String],
        kernel: &Path,
        initramfs: &[u8],
        memory_bytes: u64,
    ) -> io::Result<Self> {
        let start = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let mut text = format!("{START} {}\n", start.trim());
        let _ = writeln!(text, "qemu {}", identity(&in_path(qemu)?)?);
        let _ = writeln!(text, "kernel {}", identity(kernel)?);
        let _ = writeln!(text, "initramfs {}", hex(&Sha256::digest(initramfs)));
        for argument in arguments {
            let _ = writeln!(text, "argument {argument:?}");
        }
        Ok(Self { text, memory_bytes })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The directory's name.
    pub(crate) fn key(&self) -> String {
        hex(&Sha256::digest(&self.text)[..KEY_LEN])
    }

    /// Whether a name is one that [`Self::key`] gives.
    pub(crate) fn is_key(name: &str) -> bool {
        name.len() == 2 * KEY_LEN
            && name
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }

    /// Whether a text is one that [`Self::text`] gives, as far as its beginning tells.
    pub(crate) fn is_one(text: &str) -> bool {
        text.strip_prefix(START).is_some_and(|rest| rest.starts_with(' '))
    }

    /// Whether the text of another one is of this start of the host.
    pub(crate) fn is_of_same_start(&self, other: &str) -> bool {
        self.text.lines().next() == other.lines().next()
    }
}

/// A file that is not read: whoever changes it changes one of these.
fn identity(path: &Path) -> io::Result<String> {
    let file = fs::metadata(path)?;
    Ok(format!(
        "{path:?} {}:{} {} bytes, changed {}.{:09}",
        file.dev(),
        file.ino(),
        file.size(),
        file.ctime(),
        file.ctime_nsec()
    ))
}

/// Where a program is found that is named without a directory.
fn in_path(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|place| place.is_file())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_the_machine_changes_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let (qemu, kernel) = (dir.path().join("qemu"), dir.path().join("kernel"));
        fs::write(&qemu, "q").unwrap();
        fs::write(&kernel, "k").unwrap();
        let arguments = |text: &str| vec![text.to_owned()];
        let of = |arguments: &[String], initramfs: &[u8], memory| {
            Description::new(&qemu, arguments, &kernel, initramfs, memory).unwrap()
        };
        let first = of(&arguments("-smp 2"), b"i", 1 << 20);
        assert_eq!(first, of(&arguments("-smp 2"), b"i", 1 << 20));
        let mut keys = vec![
            first.key(),
            of(&arguments("-smp 1"), b"i", 1 << 20).key(),
            of(&arguments("-smp 2"), b"j", 1 << 20).key(),
        ];
        fs::write(&kernel, "another").unwrap();
        keys.push(of(&arguments("-smp 2"), b"i", 1 << 20).key());
        fs::write(&qemu, "newer").unwrap();
        keys.push(of(&arguments("-smp 2"), b"i", 1 << 20).key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 5);
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        assert!(in_path("sh".as_ref()).unwrap().is_absolute());
        assert_eq!(in_path("./sh".as_ref()).unwrap(), Path::new("./sh"));
        let error = in_path("no-such-program-anywhere".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
