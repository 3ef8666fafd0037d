//! Where files of a program are: paths inside the image, with its links, and the directories of libraries.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::super::Image;
use super::needs::Needs;

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;
/// Where the dynamic loaders of distributions look when nothing else is said, the most particular first.
const LIBRARIES: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// A file of the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ino: u64,
    /// The directory it really is in.
    pub(super) dir: PathBuf,
}

/// Where each file that a program in `dir` needs may be, in the order in which it is looked for.
pub(super) fn in_turn(needs: &Needs, dir: &Path) -> Vec<Vec<PathBuf>> {
    let interpreter = needs.interpreter.iter().map(|path| vec![path.clone()]);
    let libraries = needs.libraries.iter().map(|name| {
        if name.as_bytes().contains(&b'/') {
            return vec![PathBuf::from(name)];
        }
        let own = needs.search.iter().filter_map(|search| placed(search, dir));
        let dirs = own.chain(LIBRARIES.iter().map(PathBuf::from));
        dirs.map(|dir| dir.join(name)).collect()
    });
    interpreter.chain(libraries).collect()
}

/// A directory of a search path, in which `$ORIGIN` is where the program is. What is relative to where it is started
/// is not known here.
fn placed(search: &Path, origin: &Path) -> Option<PathBuf> {
    let below = ["$ORIGIN", "${ORIGIN}"]
        .iter()
        .find_map(|variable| search.strip_prefix(variable).ok());
    match below {
        Some(below) => Some(origin.join(below)),
        None => search.is_absolute().then(|| search.to_owned()),
    }
}

impl Image {
    /// The regular file at an absolute path, all links followed inside the image.
    pub(super) fn regular_file(&self, path: &Path) -> Option<Found> {
        let served = self.served();
        let root = served.sb.superblock.root_ino();
        // What is on the way from the root, and what is still to go, its next part last.
        let mut way: Vec<(u64, OsString)> = Vec::new();
        let mut rest = parts(path);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                way.pop();
                continue;
            }
            let dir = way.last().map_or(root, |(ino, _)| *ino);
            let child = self.child(dir, part.as_bytes()).ok()??;
            let inode = served.sb.get_inode(child, false).ok()?;
            if !inode.is_symlink() {
                way.push((child, part));
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let target = PathBuf::from(inode.get_symlink().ok()?);
            if target.is_absolute() {
                way.clear();
            }
            rest.extend(parts(&target));
        }
        let (ino, _) = way.pop()?;
        let dirs = way.iter().map(|(_, name)| name);
        served.sb.get_inode(ino, false).ok()?.is_reg().then(|| Found {
            ino,
            dir: Path::new("/").join(dirs.collect::<PathBuf>()),
        })
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    parts.map(OsStr::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(needs: &Needs) -> Vec<Vec<String>> {
        let shown = |files: Vec<PathBuf>| files.iter().map(|file| file.display().to_string()).collect();
        in_turn(needs, Path::new("/opt/bin"))
            .into_iter()
            .map(shown)
            .collect()
    }

    #[test]
    fn a_library_is_looked_for_where_the_program_says_first() {
        let needs = Needs {
            interpreter: Some("/lib64/ld.so".into()),
            libraries: vec!["libc.so.6".into(), "/opt/liba.so".into()],
            search: ["$ORIGIN/../lib", "${ORIGIN}", "/srv", "relative", "$LIB"]
                .map(Into::into)
                .into(),
        };
        let found = paths(&needs);
        assert_eq!(found[0], ["/lib64/ld.so"]);
        let own = [
            "/opt/bin/../lib/libc.so.6",
            "/opt/bin/libc.so.6",
            "/srv/libc.so.6",
        ];
        assert_eq!(found[1][..3], own);
        assert_eq!(found[1].len(), own.len() + LIBRARIES.len());
        assert_eq!(found[2], ["/opt/liba.so"]);
    }

    #[test]
    fn parts_of_a_path_are_taken_from_its_beginning() {
        let mut parts = parts(Path::new("/usr/./lib/../bin"));
        let mut taken = Vec::new();
        while let Some(part) = parts.pop() {
            taken.push(part);
        }
        assert_eq!(taken, ["usr", "lib", "..", "bin"]);
    }
}
