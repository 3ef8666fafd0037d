//! Machines that were booted once: kept as their memory and their devices' state, to go on from there as often as
//! wanted.
//!
//! ```text
//! DIR/lock                  held by who saves
//! DIR/KEY/about             what it is, as text; its time is that of its last use
//! DIR/KEY/state             the devices, as QEMU writes them
//! DIR/KEY/memory            the guest's memory, with holes
//! DIR/.KEY.partial/         being saved, or left by who was killed
//! ```
//! A template is of one start of this host ([`Description`]), so nothing of it has to survive a crash of the host, and
//! what it has of the processor is true. It has nobody's data in it: it is saved before the guest knows what it is for.
//! Here are the files; `qemu/` makes and uses them. What else is in the directory is not ours, and stays as it is.

mod description;
pub(crate) mod memory;
mod place;

use std::fs::{self, File, FileTimes};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(crate) use description::Description;
use place::{ABOUT, MEMORY, Place, STATE};

/// Beyond so many the least recently used go: one for each size of machine that is in use is enough.
const KEPT: usize = 4;
/// Nobody needs what was not used for so long.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// More than any machine's devices have to say; a longer file is not ours.
const MAX_STATE_LEN: u64 = 64 << 20;

/// Whether machines are booted each, or go on from one that was booted before.
///
/// All machines of a template have the kernel at the same random address, and other secrets that a kernel draws when it
/// boots are the same. What is drawn later is not: the guest gets new random numbers before its command starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Templates {
    /// Each boots.
    #[default]
    Never,
    /// From a template in this directory where guests are emulated, and a boot takes seconds.
    WhenEmulated(PathBuf),
    /// From a template in this directory.
    Always(PathBuf),
}

/// A directory of templates.
#[derive(Debug, Clone)]
pub(crate) struct TemplateDir(PathBuf);

/// A machine that can go on.
#[derive(Debug)]
pub(crate) struct Template {
    place: Place,
    /// The guest's memory.
    pub(crate) memory: File,
    /// What QEMU has written; not empty.
    state: Vec<u8>,
}

/// The place of a machine that is being saved. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Slot {
    staging: PathBuf,
    target: PathBuf,
    /// Unlocked when it is closed.
    _lock: File,
}

impl TemplateDir {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The template of such a machine, if there is one. What is there and can't be one is removed; what can't be read
    /// just now stays.
    pub(crate) fn find(&self, description: &Description) -> Option<Template> {
        let dir = self.0.join(description.key());
        let place = match self.check().and_then(|()| Place::open(&dir)) {
            Ok(place) => place?,
            Err(error) => {
                tracing::warn!(?dir, %error, "a template can't be used");
                return None;
            }
        };
        match Template::read(place, description) {
            Ok(template) => template,
            Err(error) => {
                tracing::warn!(?dir, %error, "a template can't be used");
                if let Unusable::Broken { place, .. } = error {
                    place.remove();
                }
                None
            }
        }
    }

    /// Begins to save one; `None` if somebody else is saving, or just has. What was left, and what nobody needs, goes
    /// first.
    pub(crate) fn save(&self, description: &Description) -> io::Result<Option<Slot>> {
        let mut builder = fs::DirBuilder::new();
        // Whoever may write here decides what guests run.
        builder.recursive(true).mode(0o700).create(&self.0)?;
        self.check()?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.0.join("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // Whoever held the lock when it was looked for may have saved this one.
        if self.find(description).is_some() {
            return Ok(None);
        }
        self.tidy(description)?;
        let key = description.key();
        let staging = self.0.join(partial(&key));
        builder.recursive(false).create(&staging)?;
        let slot = Slot {
            staging,
            target: self.0.join(key),
            _lock: lock,
        };
        slot.write(ABOUT, description.text().as_bytes())?;
        Ok(Some(slot))
    }

    /// Whether nobody else may have put a template here: a machine would go on as what they have made up.
    fn check(&self) -> io::Result<()> {
        match fs::metadata(&self.0) {
            Ok(dir) => place::check_owner(dir.uid(), dir.mode()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what was being saved when its owner was killed, templates of another start of this host, and those that
    /// were not used for long. The lock is held.
    fn tidy(&self, description: &Description) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Anybody may have named a directory such as this one; so what is in it has to be ours, too.
            let Ok(Some(place)) = Place::open(&entry.path()) else {
                continue;
            };
            if is_partial(name) && place.is_to_be_a_template() {
                place.remove();
            } else if Description::is_key(name) && place.is_a_template() {
                match last_use(&place, description) {
                    Some(used) => kept.push((used, place)),
                    None => place.remove(),
                }
            }
        }
        kept.sort_by_key(|(used, _)| *used);
        // One is about to come.
        let surplus = (kept.len() + 1).saturating_sub(KEPT);
        kept.drain(..surplus).for_each(|(_, place)| place.remove());
        Ok(())
    }
}

/// The name of what is being saved.
fn partial(key: &str) -> String {
    format!(".{key}.partial")
}

fn is_partial(name: &str) -> bool {
    let key = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".partial"));
    key.is_some_and(Description::is_key)
}

/// When a template of this start of the host was last used, unless that was too long ago.
fn last_use(place: &Place, description: &Description) -> Option<SystemTime> {
    let (file, text) = place.about().ok()??;
    let used = file.metadata().and_then(|about| about.modified()).ok()?;
    let recent = used.elapsed().is_ok_and(|age| age <= KEPT_FOR);
    (recent && description.is_of_same_start(&text)).then_some(used)
}

/// Removes the template that is there.
fn remove(dir: &Path) {
    match Place::open(dir) {
        Ok(Some(place)) => place.remove(),
        Ok(None) => {}
        Err(error) => tracing::warn!(?dir, %error, "cannot remove a template"),
    }
}

/// Why there is no template where there seems to be one.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// It is none, and will be none.
    #[error("{why}")]
    Broken { place: Place, why: &'static str },
    /// Nobody knows: this process has too many files open, perhaps.
    #[error(transparent)]
    Unread(#[from] io::Error),
}

impl Template {
    fn read(place: Place, description: &Description) -> Result<Option<Self>, Unusable> {
        let broken = |place, why| Err(Unusable::Broken { place, why });
        let Some((about, text)) = place.about()? else {
            return Ok(None);
        };
        if text != description.text() {
            return broken(place, "it is of another machine");
        }
        let (Some(memory), Some(file)) = (place.file(MEMORY)?, place.file(STATE)?) else {
            return broken(place, "it is not whole");
        };
        if memory.metadata()?.len() != description.memory_bytes() {
            return broken(place, "its memory is cut");
        }
        let mut state = Vec::new();
        file.take(MAX_STATE_LEN).read_to_end(&mut state)?;
        if state.is_empty() {
            return broken(place, "its state is cut");
        }
        // Says when it was last used; that it can't be said hinders nobody.
        let now = FileTimes::new().set_modified(SystemTime::now());
        if let Err(error) = about.set_times(now) {
            tracing::debug!(?place, %error, "cannot note the use of a template");
        }
        Ok(Some(Self { place, memory, state }))
    }

    /// The state's first byte.
    pub(crate) fn first_byte(&self) -> u8 {
        self.state[0]
    }

    /// The rest of the state.
    pub(crate) fn after_first_byte(&self) -> &[u8] {
        &self.state[1..]
    }

    /// Removes it: a machine did not go on from it.
    pub(crate) fn discard(&self) {
        tracing::warn!(place = ?self.place, "a machine did not go on from its template, which is removed");
        self.place.remove();
    }
}

impl Slot {
    /// The file for the guest's memory, of `len` bytes.
    pub(crate) fn memory(&self, len: u64) -> io::Result<File> {
        let file = self.create(MEMORY)?;
        file.set_len(len)?;
        Ok(file)
    }

    /// Completes the template.
    pub(crate) fn finish(self, state: &[u8]) -> io::Result<()> {
        self.write(STATE, state)?;
        // Nobody else may save, so what is there is one that was found to be no good, or was removed meanwhile.
        remove(&self.target);
        fs::rename(&self.staging, &self.target)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(self.staging.join(name))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.create(name)?, bytes)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Once it is complete, it is there no more.
        if self.staging.exists() {
            remove(&self.staging);
        }
    }
}

#[cfg(test)]
mod tests;
