//! What the mount helper asks the kernel for: flags, and mount data that fits.
//!
//! containerd hands a mount of type `fuse.nydus-overlayfs` to a program of that name, with the options meant for a
//! runtime among those meant for overlayfs. [`OverlayMount`] drops the first and reads the second. `mount(2)` takes one
//! page of data, which the paths of many layers overrun; [`OverlayMount::plan`] then names them shorter:
//!
//! ```text
//! fits          -> as given
//! too long      -> relative to the directory all of them are in      (as containerd does it)
//! still too long-> as numbers of open directories in /proc/self/fd   (any number of layers the kernel takes)
//! ```
//! The new mount API could name a layer at a time, but only by paths of less than 256 bytes until Linux 6.13; this
//! works wherever overlayfs does. Nothing here opens or mounts anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::overlay_option::{OverlayOption, split, unescape};

/// The longest mount data, in bytes: a page without the terminating NUL. Larger pages exist, smaller ones don't.
pub const MAX_MOUNT_DATA: usize = 4095;
/// overlayfs' own limit (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;

/// A flag of `mount(2)`; an option sets or clears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the option of that name in mount(8)")]
pub enum MountFlag {
    Ro,
    Nosuid,
    Nodev,
    Noexec,
    Noatime,
    Nodiratime,
    Relatime,
    Strictatime,
    Sync,
    Dirsync,
}

/// Why options do not make an overlay mount. Values of options are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayMountError {
    /// No `lowerdir`.
    #[error("the mount options have no lowerdir")]
    NoLowerdir,
    /// overlayfs needs both or neither.
    #[error("the mount options have an upperdir and no workdir")]
    NoWorkdir,
    /// Which one counts would be a guess.
    #[error("the mount options have more than one {option}")]
    Repeated {
        /// The option.
        option: &'static str,
    },
    /// More than [`MAX_LAYERS`].
    #[error("the mount options have {layers} lower directories, overlayfs takes at most {MAX_LAYERS}")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// An option for something else than a new overlay mount.
    #[error("the mount option {option} {why}")]
    Unfit {
        /// The option without its value.
        option: String,
        /// Why it can't be obeyed.
        why: &'static str,
    },
}

/// Options that remain too long with every directory named by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mount options take {len} bytes with every path shortened, the kernel takes {MAX_MOUNT_DATA}")]
pub struct TooMuchData {
    /// Their length in bytes.
    pub len: usize,
}

/// What a directory is to the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayRole {
    /// One of the read-only layers.
    Lower,
    /// Takes the writes.
    Upper,
    /// overlayfs' scratch directory.
    Work,
}

impl OverlayRole {
    /// The option's key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lower => "lowerdir",
            Self::Upper => "upperdir",
            Self::Work => "workdir",
        }
    }
}

/// How the kernel is told the directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPlan {
    /// As they were given.
    AsGiven {
        /// The mount data.
        data: String,
    },
    /// Relative to a directory to change to first.
    Relative {
        /// The directory.
        dir: PathBuf,
        /// The mount data.
        data: String,
    },
    /// By descriptors: open [`OverlayMount::directories`] in order, change to `/proc/self/fd`, and take
    /// [`OverlayMount::data_by_descriptor`].
    ByDescriptor,
}

/// An overlay to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayMount {
    /// In the order they came, which may matter to the kernel. Paths are still escaped.
    parts: Vec<Part>,
    flags: BTreeSet<MountFlag>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// An empty item is half of a `::`, which sets data-only layers apart.
    Lower(Vec<String>),
    Upper(String),
    Work(String),
    Other(String),
}

impl OverlayMount {
    /// Reads the values of `-o`, each a comma-separated list.
    ///
    /// # Errors
    /// [`OverlayMountError`] when they can't be an overlay mount, whatever the directories are.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self, OverlayMountError> {
        let mut mount = Self {
            parts: Vec::new(),
            flags: BTreeSet::new(),
        };
        for option in lists.into_iter().flat_map(|list| split(list, ',')) {
            mount.take(option)?;
        }
        mount.complete()
    }

    fn take(&mut self, option: &str) -> Result<(), OverlayMountError> {
        match OverlayOption::of(option) {
            OverlayOption::ExtraOption(_) | OverlayOption::VirtualVolume(_) => {}
            OverlayOption::Lowerdir(dirs) => self
                .parts
                .push(Part::Lower(split(dirs, ':').map(str::to_owned).collect())),
            OverlayOption::Upperdir("") => return Err(no_directory(OverlayRole::Upper)),
            OverlayOption::Workdir("") => return Err(no_directory(OverlayRole::Work)),
            OverlayOption::Upperdir(dir) => self.parts.push(Part::Upper(dir.to_owned())),
            OverlayOption::Workdir(dir) => self.parts.push(Part::Work(dir.to_owned())),
            OverlayOption::Other("") => {}
            OverlayOption::Other(option) => match Word::of(option) {
                Word::Set(flag) => drop(self.flags.insert(flag)),
                Word::Clear(flag) => drop(self.flags.remove(&flag)),
                Word::Nothing => {}
                Word::Unfit(why) => {
                    let key = option.split_once('=').map_or(option, |(key, _)| key);
                    return Err(OverlayMountError::Unfit {
                        option: key.to_owned(),
                        why,
                    });
                }
                Word::Data => self.parts.push(Part::Other(option.to_owned())),
            },
        }
        Ok(())
    }

    fn complete(self) -> Result<Self, OverlayMountError> {
        let count = |is: fn(&Part) -> bool| self.parts.iter().filter(|part| is(part)).count();
        let lowers = count(|part| matches!(part, Part::Lower(_)));
        let uppers = count(|part| matches!(part, Part::Upper(_)));
        let works = count(|part| matches!(part, Part::Work(_)));
        for (option, count) in [("lowerdir", lowers), ("upperdir", uppers), ("workdir", works)] {
            if count > 1 {
                return Err(OverlayMountError::Repeated { option });
            }
        }
        let layers = self
            .directories()
            .filter(|(role, _)| *role == OverlayRole::Lower)
            .count();
        if layers == 0 {
            Err(OverlayMountError::NoLowerdir)
        } else if layers > MAX_LAYERS {
            Err(OverlayMountError::TooManyLayers { layers })
        } else if uppers > works {
            Err(OverlayMountError::NoWorkdir)
        } else {
            Ok(self)
        }
    }

    /// The flags of `mount(2)`.
    #[must_use]
    pub fn flags(&self) -> &BTreeSet<MountFlag> {
        &self.flags
    }

    /// The overlay's directories with what they are, in the order of the options.
    pub fn directories(&self) -> impl Iterator<Item = (OverlayRole, PathBuf)> + '_ {
        self.texts()
            .map(|(role, text)| (role, PathBuf::from(unescape(text))))
    }

    fn texts(&self) -> impl Iterator<Item = (OverlayRole, &str)> {
        self.parts.iter().flat_map(|part| {
            let (role, texts) = match part {
                Part::Lower(dirs) => (OverlayRole::Lower, dirs.as_slice()),
                Part::Upper(dir) => (OverlayRole::Upper, std::slice::from_ref(dir)),
                Part::Work(dir) => (OverlayRole::Work, std::slice::from_ref(dir)),
                Part::Other(_) => (OverlayRole::Lower, [].as_slice()),
            };
            texts
                .iter()
                .filter(|text| !text.is_empty())
                .map(move |text| (role, text.as_str()))
        })
    }

    /// How the kernel is told.
    #[must_use]
    pub fn plan(&self) -> MountPlan {
        let data = self.data(str::to_owned);
        if data.len() <= MAX_MOUNT_DATA {
            return MountPlan::AsGiven { data };
        }
        if let Some(base) = self.common_directory() {
            let data = self.data(|text| text[base.len()..].trim_start_matches('/').to_owned());
            if data.len() <= MAX_MOUNT_DATA {
                return MountPlan::Relative {
                    dir: Path::new(base).to_owned(),
                    data,
                };
            }
        }
        MountPlan::ByDescriptor
    }

    /// The mount data when the directories are open as `numbers`, in the order of [`Self::directories`].
    ///
    /// # Errors
    /// [`TooMuchData`] when even this is more than the kernel takes.
    pub fn data_by_descriptor(&self, numbers: &[i32]) -> Result<String, TooMuchData> {
        let mut numbers = numbers.iter();
        let data = self.data(|_| numbers.next().map(i32::to_string).unwrap_or_default());
        if data.len() <= MAX_MOUNT_DATA {
            Ok(data)
        } else {
            Err(TooMuchData { len: data.len() })
        }
    }

    /// The options in their order, each directory as `name` has it.
    fn data(&self, mut name: impl FnMut(&str) -> String) -> String {
        let options: Vec<String> = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Lower(dirs) => {
                    let mut named = |dir: &String| if dir.is_empty() { String::new() } else { name(dir) };
                    let dirs: Vec<String> = dirs.iter().map(&mut named).collect();
                    format!("lowerdir={}", dirs.join(":"))
                }
                Part::Upper(dir) => format!("upperdir={}", name(dir)),
                Part::Work(dir) => format!("workdir={}", name(dir)),
                Part::Other(option) => option.clone(),
            })
            .collect();
        options.join(",")
    }

    /// The deepest directory that has all the others below it, without a trailing slash; none when it would be `/`.
    /// It ends before the first backslash, so that it is the same with and without escapes.
    fn common_directory(&self) -> Option<&str> {
        let below = |dir: &str, text: &str| {
            let rest = text.strip_prefix(dir).unwrap_or_default();
            let name = rest.trim_start_matches('/');
            // `\/` is a slash too, and a name that begins with one is no longer relative.
            rest.starts_with('/') && !name.is_empty() && !name.starts_with("\\/")
        };
        let (_, first) = self.texts().next()?;
        let mut common = &first[..first.find('\\').unwrap_or(first.len())];
        common = &common[..common.rfind('/')?];
        for (_, text) in self.texts() {
            while !below(common, text) {
                common = &common[..common.rfind('/')?];
            }
        }
        (common.len() > 1 && common.starts_with('/')).then_some(common)
    }
}

fn no_directory(role: OverlayRole) -> OverlayMountError {
    OverlayMountError::Unfit {
        option: role.as_str().to_owned(),
        why: "names no directory",
    }
}

/// What a word of mount(8) means for an overlay.
enum Word {
    Set(MountFlag),
    Clear(MountFlag),
    /// Said for somebody else, or the default.
    Nothing,
    Unfit(&'static str),
    /// overlayfs' own.
    Data,
}

impl Word {
    fn of(option: &str) -> Self {
        use MountFlag as F;
        const NOT_NEW: &str = "is for a mount that exists already";
        const NOT_OVERLAY: &str = "is not for overlayfs";
        const ID_MAPPED: &str =
            "asks for an ID-mapped mount, which containerd makes itself for type overlay only";
        match option {
            "ro" => Self::Set(F::Ro),
            "rw" => Self::Clear(F::Ro),
            "nosuid" => Self::Set(F::Nosuid),
            "suid" => Self::Clear(F::Nosuid),
            "nodev" => Self::Set(F::Nodev),
            "dev" => Self::Clear(F::Nodev),
            "noexec" => Self::Set(F::Noexec),
            "exec" => Self::Clear(F::Noexec),
            "noatime" => Self::Set(F::Noatime),
            "atime" => Self::Clear(F::Noatime),
            "nodiratime" => Self::Set(F::Nodiratime),
            "diratime" => Self::Clear(F::Nodiratime),
            "relatime" => Self::Set(F::Relatime),
            "norelatime" => Self::Clear(F::Relatime),
            "strictatime" => Self::Set(F::Strictatime),
            "nostrictatime" => Self::Clear(F::Strictatime),
            "sync" => Self::Set(F::Sync),
            "async" => Self::Clear(F::Sync),
            "dirsync" => Self::Set(F::Dirsync),
            // Of fstab, or (mandatory locks) without effect since Linux 5.15.
            "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group" | "_netdev"
            | "nofail" | "mand" | "nomand" | "loud" | "silent" => Self::Nothing,
            "bind" | "rbind" | "move" | "remount" | "shared" | "rshared" | "slave" | "rslave" | "private"
            | "rprivate" | "unbindable" | "runbindable" => Self::Unfit(NOT_NEW),
            "loop" => Self::Unfit(NOT_OVERLAY),
            _ if option.starts_with("X-containerd.") => {
                Self::Unfit("is for containerd's mount manager, which has not consumed it")
            }
            _ if option.starts_with("x-") || option.starts_with("X-") || option.starts_with("comment=") => {
                Self::Nothing
            }
            _ if option.starts_with("uidmap=") || option.starts_with("gidmap=") => Self::Unfit(ID_MAPPED),
            _ => Self::Data,
        }
    }
}

#[cfg(test)]
mod tests;
