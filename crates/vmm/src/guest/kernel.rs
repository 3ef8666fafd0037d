//! Linux kernel images: which are there, and which release each is.
//!
//! The release comes from the image's own boot header, not from its file name: it is what `lib/modules` is keyed by.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The boot header, up to the longest version text behind it that we look for. The version's offset counts from the
/// start of the setup code and is 16 bits wide (Documentation/arch/x86/boot.rst, `kernel_version`).
const HEADER_LEN: u64 = 0x200 + 0x1_0000;

/// Why a file is not a usable kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// It can't be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has no Linux boot header, or none with a version.
    #[error("{path:?} is not a Linux bzImage with a version")]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
}

/// A bootable kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    image: PathBuf,
    version: String,
}

impl Kernel {
    /// Reads the header of a kernel image.
    ///
    /// # Errors
    /// [`KernelError`] when it can't be read or is no bzImage.
    pub fn open(image: &Path) -> Result<Self, KernelError> {
        let mut header = Vec::new();
        File::open(image)
            .and_then(|file| file.take(HEADER_LEN).read_to_end(&mut header))
            .map_err(|source| KernelError::Read {
                path: image.to_owned(),
                source,
            })?;
        match version_in(&header) {
            Some(version) => Ok(Self {
                image: image.to_owned(),
                version,
            }),
            None => Err(KernelError::NotAKernel {
                path: image.to_owned(),
            }),
        }
    }

    #[cfg(test)]
    pub(super) fn made_up(image: &str, version: &str) -> Self {
        Self {
            image: image.into(),
            version: version.to_owned(),
        }
    }

    /// All `boot/vmlinuz-*` below `root`, newest first. A root without `boot` has none. What is no kernel, a link to
    /// one that was removed perhaps, is left out, unless there is nothing else.
    pub(super) fn installed(root: &Path) -> Result<Vec<Self>, KernelError> {
        let boot = root.join("boot");
        let entries = match fs::read_dir(&boot) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(KernelError::Read { path: boot, source }),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("vmlinuz-"))
            .collect();
        names.sort_by(|a, b| by_version(b, a));
        let mut kernels = Vec::new();
        let mut first_error = None;
        for name in names {
            match Self::open(&boot.join(&name)) {
                Ok(kernel) => kernels.push(kernel),
                Err(error) => {
                    tracing::debug!(%error, name, "not a kernel that can be booted");
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if kernels.is_empty() => Err(error),
            _ => Ok(kernels),
        }
    }

    /// The image's path.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The kernel's release, as `uname -r` shows it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn version_in(header: &[u8]) -> Option<String> {
    if header.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(header.get(0x20e..0x210)?.try_into().ok()?);
    let text = header.get(0x200 + usize::from(offset)..)?;
    let end = text.iter().position(|&b| b == b' ' || b == 0)?;
    let version = std::str::from_utf8(&text[..end]).ok()?;
    // It becomes a component of a path.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    (version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(plain))
        .then(|| version.to_owned())
}

/// Compares names so that `6.1.0-9` is older than `6.1.0-56`: runs of digits as numbers, all else as text.
fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (number_a, rest_a) = leading_number(a);
                let (number_b, rest_b) = leading_number(b);
                // Without leading zeros, the longer number is the greater.
                let order = number_a.len().cmp(&number_b.len()).then(number_a.cmp(number_b));
                if order.is_ne() {
                    return order;
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), Some(y)) if x == y => (a, b) = (&a[1..], &b[1..]),
            (x, y) => return x.cmp(&y),
        }
    }
}

fn leading_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|&&b| b == b'0').count();
    (&digits[zeros..], rest)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use super::*;

    /// The header of a bzImage of release `version`.
    pub(crate) fn image(version: &str) -> Vec<u8> {
        let mut header = vec![0; 0x400];
        header[0x202..0x206].copy_from_slice(b"HdrS");
        header[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        header[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        header[0x300 + version.len()] = b' ';
        header
    }

    #[test]
    fn the_release_is_read_from_the_header() {
        assert_eq!(
            version_in(&image("6.1.0-56-cloud-amd64")).as_deref(),
            Some("6.1.0-56-cloud-amd64")
        );
        for bad in ["", "../../etc", "6/1"] {
            assert_eq!(version_in(&image(bad)), None, "{bad}");
        }
        assert_eq!(version_in(b"not a kernel"), None);
        assert_eq!(version_in(&image("6.1")[..0x300]), None);
    }

    #[test]
    fn newest_first() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        for version in ["6.1.0-9-a", "6.1.0-56-a", "5.10.0-100-a", "6.1.0-056-b"] {
            fs::write(
                root.path().join("boot").join(format!("vmlinuz-{version}")),
                image(version),
            )
            .unwrap();
        }
        let versions: Vec<String> = Kernel::installed(root.path())
            .unwrap()
            .iter()
            .map(|k| k.version().to_owned())
            .collect();
        assert_eq!(
            versions,
            ["6.1.0-056-b", "6.1.0-56-a", "6.1.0-9-a", "5.10.0-100-a"]
        );
    }

    #[test]
    fn what_is_no_kernel_does_not_hide_those_that_are() {
        let root = tempfile::tempdir().unwrap();
        let boot = root.path().join("boot");
        fs::create_dir(&boot).unwrap();
        fs::write(boot.join("vmlinuz-6.3-broken"), "broken").unwrap();
        std::os::unix::fs::symlink("gone", boot.join("vmlinuz-6.2-gone")).unwrap();
        // What is newest is what is told of.
        assert!(matches!(
            Kernel::installed(root.path()),
            Err(KernelError::NotAKernel { path }) if path.ends_with("vmlinuz-6.3-broken")
        ));
        fs::write(boot.join("vmlinuz-6.1"), image("6.1")).unwrap();
        let kernels = Kernel::installed(root.path()).unwrap();
        assert_eq!(
            kernels,
            [Kernel::made_up(boot.join("vmlinuz-6.1").to_str().unwrap(), "6.1")]
        );
    }
}
