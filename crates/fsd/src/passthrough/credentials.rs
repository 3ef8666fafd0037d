//! On whose behalf a file is made.
//!
//! A new file belongs to the process in the guest that asked for it. The thread takes on its user and groups for
//! that one call, and always takes its own back. Linux has credentials per thread; so that the same is true of the
//! umask, which the guest has applied already, each thread that makes files gets a umask of its own.

use std::cell::{Cell, RefCell};

use rustix::fs::Mode;
use rustix::io::{Errno, Result};
use rustix::process::{Gid, Uid, getegid, geteuid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::sys::thread::own_umask;

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    /// Supplementary groups of the request that this thread serves.
    static GROUPS: RefCell<Vec<Gid>> = const { RefCell::new(Vec::new()) };
}

/// Serves one request on behalf of these supplementary groups. The FUSE library's `Context` has no place for them.
pub(crate) fn with_groups<R>(groups: &[u32], serve: impl FnOnce() -> R) -> R {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            GROUPS.with_borrow_mut(Vec::clear);
        }
    }
    GROUPS.with_borrow_mut(|theirs| {
        theirs.clear();
        theirs.extend(
            groups
                .iter()
                .filter(|gid| **gid != u32::MAX)
                .map(|gid| Gid::from_raw(*gid)),
        );
    });
    let _clear = Clear;
    serve()
}

/// While this lives the thread acts for a process of the guest.
#[must_use]
pub(super) struct Acting {
    uid: Option<Uid>,
    gid: Option<Gid>,
    groups: bool,
}

impl Acting {
    /// Takes on user and group. Root stays what we are, which is root or an unprivileged user who can make files for
    /// himself only: then any other user is refused by the kernel.
    ///
    /// A guest that cannot tell us of supplementary groups (`knows_groups` false) has checked them itself; we must
    /// then not be stopped for the lack of them.
    pub(super) fn of(uid: u32, gid: u32, knows_groups: bool) -> Result<Self> {
        prepare();
        let mut acting = Self {
            uid: None,
            gid: None,
            groups: false,
        };
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        if uid == 0 && gid == 0 {
            return Ok(acting);
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let (our_uid, our_gid) = (geteuid(), getegid());
        // The group first: with another user we lose the right to change it. An error on the way drops `acting`,
        // which takes back what was done.
        GROUPS.with_borrow(|groups| {
            if groups.is_empty() {
                return Ok(());
            }
            match set_thread_groups(groups) {
                Ok(()) => acting.groups = true,
                // We are not root, have our own groups and keep them; the kernel judges what they are worth.
                Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        if gid != Gid::ROOT && gid != our_gid {
            acting.gid = Some(our_gid);
            set_thread_res_gid(None, gid, None)?;
        }
        if uid != Uid::ROOT && uid != our_uid {
            acting.uid = Some(our_uid);
            set_thread_res_uid(None, uid, None)?;
            if !knows_groups {
                let mut sets = capabilities(None)?;
                sets.effective |= sets.permitted & CapabilitySet::DAC_OVERRIDE;
                set_capabilities(None, sets)?;
            }
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let own = |uid: Option<Uid>, gid: Option<Gid>| {
            if uid.is_some() {
                set_thread_res_uid(None, uid, None)?;
            }
            if gid.is_some() {
                set_thread_res_gid(None, gid, None)?;
            }
            if self.groups {
                set_thread_groups(&[])?;
            }
            Ok::<_, Errno>(())
        };
        if let Err(error) = own(self.uid, self.gid) {
            // The kernel has no reason to refuse. If it does, this thread would serve everybody as that user.
            tracing::error!(%error, "a thread cannot take its credentials back");
            std::process::abort();
        }
    }
}

/// While this lives the kernel clears setuid and setgid bits of a file that is written, as it does for a process
/// without CAP_FSETID.
#[must_use]
pub(super) struct WithoutFsetid(Option<CapabilitySets>);

impl WithoutFsetid {
    /// Gives the capability up if `wanted`.
    pub(super) fn when(wanted: bool) -> Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let own = capabilities(None)?;
        if !own.effective.contains(CapabilitySet::FSETID) {
            return Ok(Self(None));
        }
        let mut without = own;
        without.effective -= CapabilitySet::FSETID;
        set_capabilities(None, without)?;
        Ok(Self(Some(own)))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if let Some(own) = self.0
            && let Err(error) = set_capabilities(None, own)
        {
            // It stays permitted, so the kernel has no reason to refuse. Without it more bits would be cleared than
            // asked for, which harms nobody.
            tracing::error!(%error, "a thread cannot take a capability back");
        }
    }
}

/// Once per thread.
fn prepare() {
    if PREPARED.replace(true) {
        return;
    }
    if let Err(error) = own_umask() {
        tracing::warn!(%error, "threads share one umask; it is cleared for the whole process");
    }
    umask(Mode::empty());
    // A guest's user must not have our groups. Without the right to drop them we cannot become another user either.
    let _ = set_thread_groups(&[]);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn is_root() -> bool {
        if geteuid() == Uid::ROOT {
            return true;
        }
        eprintln!("skipped: becoming another user needs root");
        false
    }

    #[test]
    fn a_thread_takes_its_credentials_back() {
        if !is_root() {
            return;
        }
        with_groups(&[77], || {
            let acting = Acting::of(1234, 5678, true).unwrap();
            assert_eq!((geteuid().as_raw(), getegid().as_raw()), (1234, 5678));
            let groups = rustix::process::getgroups().unwrap();
            assert_eq!(groups, [Gid::from_raw(77)]);
            drop(acting);
        });
        assert_eq!((geteuid(), getegid()), (Uid::ROOT, Gid::ROOT));
        assert!(rustix::process::getgroups().unwrap().is_empty());
        assert!(GROUPS.with_borrow(Vec::is_empty));
    }

    #[test]
    fn one_who_is_not_root_stays_himself_and_nobody_else() {
        if !is_root() {
            return;
        }
        let thread = std::thread::spawn(|| {
            let (uid, gid) = (Uid::from_raw(1234), Gid::from_raw(1234));
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            with_groups(&[77], || {
                drop(Acting::of(1234, 1234, true).unwrap());
                drop(Acting::of(0, 0, true).unwrap());
                assert_eq!(Acting::of(5678, 1234, true).err(), Some(Errno::PERM));
                assert_eq!(Acting::of(1234, 5678, true).err(), Some(Errno::PERM));
            });
            assert_eq!((geteuid(), getegid()), (uid, gid));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_capability_given_up_comes_back() {
        if !is_root() {
            return;
        }
        let has = || {
            capabilities(None)
                .unwrap()
                .effective
                .contains(CapabilitySet::FSETID)
        };
        let without = WithoutFsetid::when(true).unwrap();
        assert!(!has());
        drop(without);
        assert!(has());
    }
}
