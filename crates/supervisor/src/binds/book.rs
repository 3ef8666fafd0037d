//! The binds of one sandbox, each kept until nothing of it is left.

use std::path::Path;

use nydusbox_protocol::{ContainerId, MountPoint};

use super::{Bind, BindError, Mounted};
use crate::dir::Leftover;

/// Binds by the mount they belong to, planned ones included. Dropping it undoes them.
#[derive(Debug, Default)]
pub(crate) struct BindBook {
    binds: Vec<(MountPoint, Bind)>,
}

impl BindBook {
    /// Plans a bind and enters it. Of a mount that is there (`is_mounted`) it has to be the same.
    ///
    /// `Ok(false)`: another one is there.
    pub(crate) fn enter(
        &mut self,
        at: &MountPoint,
        is_mounted: bool,
        share: &Path,
        container: &ContainerId,
        source: &Path,
    ) -> Result<bool, BindError> {
        let new = Bind::plan(share, container, source)?;
        match self.binds.iter_mut().find(|(of, _)| of == at) {
            // Of the mount that was there before, and could be undone but for directories.
            Some((_, bind)) if bind.mounted == Mounted::Not => match is_mounted {
                true => return Ok(false),
                false => bind.plan_again(new),
            },
            Some((_, bind)) if is_mounted => return Ok(new.is_same(bind)),
            Some((_, bind)) => return Err(BindError::Occupied { path: bind.target() }),
            None => self.binds.push((at.clone(), new)),
        }
        Ok(true)
    }

    /// Makes what is planned for a mount, if anything is. What is left of an earlier one is not.
    pub(crate) fn make(&mut self, at: &MountPoint) -> Result<(), BindError> {
        match self.binds.iter_mut().find(|(of, _)| of == at) {
            Some((_, bind)) if bind.mounted == Mounted::Planned => bind.make(),
            _ => Ok(()),
        }
    }

    /// Undoes the binds of all mounts but those that are to stay, and forgets those of which nothing is left. The
    /// others are tried again with the next call.
    pub(crate) fn undo_all_but(&mut self, stays: impl Fn(&MountPoint) -> bool) -> Vec<Leftover> {
        let mut left = Vec::new();
        self.binds.retain_mut(|(at, bind)| {
            if stays(at) {
                return true;
            }
            let of_this = bind.undo();
            let keep = !of_this.is_empty();
            left.extend(of_this);
            keep
        });
        left
    }

    /// Every bind that is there or may be, with the mount it belongs to.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&MountPoint, &Bind)> {
        self.binds.iter().map(|(at, bind)| (at, bind))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.binds.len()
    }

    /// The book of a predecessor. What it had begun to make is looked for.
    pub(crate) fn recalled(binds: impl IntoIterator<Item = (MountPoint, Bind)>) -> Self {
        let mut binds: Vec<_> = binds.into_iter().collect();
        for (_, bind) in &mut binds {
            bind.find_mount();
        }
        Self { binds }
    }

    /// The bind of a mount; not what is left of one that was there before.
    pub(crate) fn find(&self, at: &MountPoint) -> Option<&Bind> {
        let of_this = |(of, bind): &&(MountPoint, Bind)| of == at && bind.mounted != Mounted::Not;
        self.binds.iter().find(of_this).map(|(_, bind)| bind)
    }
}

impl Drop for BindBook {
    fn drop(&mut self) {
        for left in self.undo_all_but(|_| false) {
            tracing::warn!(error = &left as &dyn std::error::Error, "left behind");
        }
    }
}
