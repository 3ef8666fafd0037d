//! The ledger of mounts: which places are taken and what state they are in. Pure; the file systems themselves
//! live in the VFS.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use nydus_api::ConfigV2;
use nydusbox_protocol::{FsType, MountPoint};

use super::error::{MAX_MOUNTS, MountError};
use crate::metrics::nydus::Recording;
use crate::metrics::{FetchCounters, Totals};

/// What is known of a mount.
#[derive(Debug, Clone)]
pub(crate) struct MountRecord {
    pub(crate) fs_type: FsType,
    pub(crate) mounted: SystemTime,
    /// The configuration in force, without secrets.
    pub(crate) config: Option<serde_json::Value>,
    /// Where an image comes from; its counters are found through it.
    pub(crate) image: Option<ImageOrigin>,
    pub(crate) counted: Counted,
}

/// Where a mount's figures are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    /// Its place in the VFS.
    pub(crate) place: u8,
    /// What had been counted at that place before.
    pub(crate) before: Arc<Totals>,
    /// Of an image whose blobs are not left to nydus.
    pub(crate) fetches: Option<Arc<FetchCounters>>,
    pub(crate) recording: Recording,
}

/// What an image was mounted from.
#[derive(Clone)]
pub(crate) struct ImageOrigin {
    pub(crate) bootstrap: PathBuf,
    pub(crate) config: Arc<ConfigV2>,
}

impl std::fmt::Debug for ImageOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The configuration may hold credentials.
        f.debug_struct("ImageOrigin")
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
enum Place {
    /// A mount is being made: the place and its slot are taken.
    Reserved,
    Mounted(MountRecord),
    /// Being unmounted or remounted: `umount` and `mount` have to wait.
    Changing(MountRecord),
}

/// All places of a namespace.
#[derive(Debug, Default)]
pub(super) struct Table {
    places: BTreeMap<MountPoint, Place>,
}

impl Table {
    /// Takes a place and a slot for a mount about to be made.
    pub(super) fn reserve(&mut self, at: &MountPoint) -> Result<(), MountError> {
        match self.places.get(at) {
            Some(Place::Mounted(_)) => {
                return Err(MountError::AlreadyMounted {
                    mount_point: at.clone(),
                });
            }
            Some(Place::Reserved | Place::Changing(_)) => {
                return Err(MountError::Busy {
                    mount_point: at.clone(),
                });
            }
            None => {}
        }
        if let Some(existing) = self.places.keys().find(|other| other.overlaps(at)) {
            return Err(MountError::Nested {
                mount_point: at.clone(),
                existing: existing.clone(),
            });
        }
        if self.places.len() >= MAX_MOUNTS {
            return Err(MountError::SlotsExhausted {
                mount_point: at.clone(),
            });
        }
        self.places.insert(at.clone(), Place::Reserved);
        Ok(())
    }

    /// The mount is there.
    pub(super) fn commit(&mut self, at: &MountPoint, record: MountRecord) {
        self.places.insert(at.clone(), Place::Mounted(record));
    }

    /// The place is free again.
    pub(super) fn release(&mut self, at: &MountPoint) {
        self.places.remove(at);
    }

    /// Takes a mount for a change; [`Table::commit`] or [`Table::release`] ends it.
    pub(super) fn begin_change(&mut self, at: &MountPoint) -> Result<MountRecord, MountError> {
        match self.places.get_mut(at) {
            None => Err(MountError::NotMounted {
                mount_point: at.clone(),
            }),
            Some(place) => {
                let Place::Mounted(record) = place else {
                    return Err(MountError::Busy {
                        mount_point: at.clone(),
                    });
                };
                let record = record.clone();
                *place = Place::Changing(record.clone());
                Ok(record)
            }
        }
    }

    /// What is mounted at a place.
    pub(super) fn get(&self, at: &MountPoint) -> Option<&MountRecord> {
        match self.places.get(at)? {
            Place::Mounted(record) | Place::Changing(record) => Some(record),
            Place::Reserved => None,
        }
    }

    /// Every mount.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&MountPoint, &MountRecord)> {
        self.places.keys().filter_map(|at| Some((at, self.get(at)?)))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(path: &str) -> MountPoint {
        MountPoint::new(path).unwrap()
    }

    fn record() -> MountRecord {
        MountRecord {
            fs_type: FsType::PassthroughFs,
            mounted: SystemTime::UNIX_EPOCH,
            config: None,
            image: None,
            counted: Counted::default(),
        }
    }

    #[test]
    fn a_place_is_taken_from_the_reservation_on() {
        let mut table = Table::default();
        table.reserve(&at("/a")).unwrap();
        assert!(matches!(table.reserve(&at("/a")), Err(MountError::Busy { .. })));
        table.commit(&at("/a"), record());
        assert!(matches!(
            table.reserve(&at("/a")),
            Err(MountError::AlreadyMounted { .. })
        ));
        table.release(&at("/a"));
        table.reserve(&at("/a")).unwrap();
    }

    #[test]
    fn nested_places_are_refused_and_named() {
        let mut table = Table::default();
        table.reserve(&at("/a")).unwrap();
        let error = table.reserve(&at("/a/b")).unwrap_err();
        assert!(
            matches!(&error, MountError::Nested { existing, .. } if existing == &at("/a")),
            "{error}"
        );
    }

    #[test]
    fn the_256th_mount_is_refused_and_a_released_slot_is_usable() {
        let mut table = Table::default();
        for n in 0..MAX_MOUNTS {
            table.reserve(&at(&format!("/m{n}"))).unwrap();
        }
        assert!(matches!(
            table.reserve(&at("/more")),
            Err(MountError::SlotsExhausted { .. })
        ));
        table.release(&at("/m7"));
        table.reserve(&at("/more")).unwrap();
    }

    #[test]
    fn a_mount_under_change_is_listed_and_cannot_be_changed_twice() {
        let mut table = Table::default();
        table.reserve(&at("/a")).unwrap();
        assert_eq!(table.iter().count(), 0);
        table.commit(&at("/a"), record());
        table.begin_change(&at("/a")).unwrap();
        assert_eq!(table.iter().count(), 1);
        assert!(matches!(
            table.begin_change(&at("/a")),
            Err(MountError::Busy { .. })
        ));
        assert!(matches!(
            table.begin_change(&at("/b")),
            Err(MountError::NotMounted { .. })
        ));
    }
}
