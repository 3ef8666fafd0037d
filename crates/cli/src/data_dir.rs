//! Where data is kept that outlives sandboxes: images, and what daemons have fetched of them.
//!
//! Owns the default place, the names inside, and who may write there: whoever does decides what guests run.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{Mode, OFlags, fchmod, fstat, open};
use rustix::process::geteuid;

use crate::error::Failure;

/// Where a command's data is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirArg {
    /// Directory for images, the blob cache and the guest's writes
    /// [default: /var/lib/nydusbox for root, else nydusbox in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "DIR", env = "NYDUSBOX_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

/// The data directory, absolute.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDirArg {
    /// The directory given, or the user's default. It need not be there, but must not be somebody else's.
    pub(crate) fn resolve(self) -> Result<DataDir, Failure> {
        let (path, made) = match self.data_dir.or_else(usual) {
            Some(path) => (path, Ok(())),
            // A name that anybody may have taken already.
            None => {
                let path = std::env::temp_dir().join(format!("nydusbox-{}", geteuid().as_raw()));
                let made = make_private(&path);
                (path, made)
            }
        };
        made.and_then(|()| std::path::absolute(&path))
            .and_then(|path| check(&path).map(|()| DataDir(path)))
            .map_err(|e| Failure::new(&format!("use the data directory {}", path.display()), &e))
    }
}

impl DataDir {
    /// The image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// What daemons have fetched, by blob.
    pub(crate) fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Machines that were booted once.
    pub(crate) fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    /// What belongs to one run each.
    pub(crate) fn runs(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Makes that directory, for nobody else to enter: guests make files in there that are root's and setuid, and
    /// device nodes.
    pub(crate) fn make_runs(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        make_private(&self.runs())
    }

    /// What belongs to one run only.
    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.runs().join(name)
    }
}

/// The user's default, unless nothing says where that is.
fn usual() -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some("/var/lib/nydusbox".into());
    }
    of_a_user(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))
}

/// By the XDG rule, a directory that is not absolute counts as none.
fn of_a_user(data_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |dir: Option<OsString>| dir.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let data = absolute(data_home).or_else(|| absolute(home).map(|home| home.join(".local/share")))?;
    Some(data.join("nydusbox"))
}

fn refused<T>(why: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Whether a directory is this user's or root's, if it is there, and not everybody's. Whom its group has in it is for
/// its owner to know.
fn check(dir: &Path) -> io::Result<()> {
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if owner != 0 && owner != geteuid().as_raw() {
        refused(format!("it belongs to another user ({owner})"))
    } else if mode & 0o002 != 0 {
        refused(format!("everybody may write to it (mode {mode:04o})"))
    } else {
        Ok(())
    }
}

/// Makes a directory that only its owner enters, or makes it such a one.
fn make_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    // Not through a link: what is behind it is not ours to change.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = open(dir, flags, Mode::empty())?;
    let stat = fstat(&dir)?;
    if stat.st_uid != geteuid().as_raw() {
        return refused(format!("it belongs to another user ({})", stat.st_uid));
    }
    if stat.st_mode & 0o077 != 0 {
        fchmod(&dir, Mode::RWXU)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_absolute_counts_as_none() {
        let is = |data_home: Option<&str>, home: Option<&str>| {
            of_a_user(data_home.map(OsString::from), home.map(OsString::from))
        };
        assert_eq!(is(Some("/d"), Some("/h")), Some("/d/nydusbox".into()));
        for given in [None, Some(""), Some("d"), Some("./d")] {
            assert_eq!(
                is(given, Some("/h")),
                Some("/h/.local/share/nydusbox".into()),
                "{given:?}"
            );
            assert_eq!(is(given, given), None, "{given:?}");
        }
    }

    #[test]
    fn a_directory_of_somebody_else_or_of_everybody_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let resolved = || {
            let data_dir = Some(dir.path().to_owned());
            DataDirArg { data_dir }.resolve()
        };
        for (mode, is_taken) in [(0o755, true), (0o775, true), (0o777, false), (0o1777, false)] {
            set_mode(dir.path(), mode);
            assert_eq!(resolved().is_ok(), is_taken, "{mode:o}");
        }
        set_mode(dir.path(), 0o700);
        assert!(check(&dir.path().join("not there yet")).is_ok());
        if geteuid().is_root() {
            chown(dir.path(), Some(12345), None).unwrap();
            let (sentence, _) = resolved().unwrap_err().into_parts();
            assert!(
                sentence.ends_with("it belongs to another user (12345)"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn nobody_else_enters_the_directory_of_the_runs() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir(dir.path().join("a/b"));
        data.make_runs().unwrap();
        assert_eq!(mode(&data.runs()), 0o700);
        // As it was made before.
        set_mode(&data.runs(), 0o755);
        data.make_runs().unwrap();
        assert_eq!(mode(&data.runs()), 0o700);
        fs::remove_dir(data.runs()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        set_mode(&elsewhere, 0o755);
        symlink(&elsewhere, data.runs()).unwrap();
        assert!(data.make_runs().is_err());
        assert_eq!(mode(&elsewhere), 0o755);
    }
}
