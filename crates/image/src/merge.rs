//! Layers become one file system and the table of blobs it is stored in.
//!
//! Pure; what applying means is in `tree/apply.rs`, writing the result in `rafs/bootstrap.rs`.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use crate::layers::{ConvertedLayer, LayerError};
use crate::rafs::blob::Blob;
use crate::tree::{ApplyError, Kind, Layer, Tree};

/// Blobs a bootstrap of RAFS v6 can name.
const MAX_BLOBS: usize = 254;

/// A layer, and the blobs its chunks number.
#[derive(Debug)]
pub(crate) struct MergeLayer {
    pub(crate) layer: Layer,
    pub(crate) blobs: Vec<Blob>,
}

impl From<ConvertedLayer> for MergeLayer {
    fn from(converted: ConvertedLayer) -> Self {
        let mut blobs = vec![converted.blob];
        blobs.extend(converted.dictionary_blobs);
        Self {
            layer: converted.layer,
            blobs,
        }
    }
}

/// An image's file system.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) tree: Tree,
    /// Those that any file has data in.
    pub(crate) blobs: Vec<Blob>,
    /// For each layer, which of its blobs is which of these.
    pub(crate) blob_indexes: Vec<Vec<u32>>,
    /// The layers that went through a link of another.
    pub(crate) through_links: BTreeSet<usize>,
}

/// Why layers don't make an image.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// An entry of the layer of this number.
    Entry {
        layer: usize,
        error: ApplyError,
    },
    TooManyBlobs,
}

/// Applies the layers, the lowest first.
pub(crate) fn merge(layers: &[impl Borrow<MergeLayer>]) -> Result<Merged, MergeError> {
    let layers = || layers.iter().map(Borrow::borrow).enumerate();
    let mut tree = Tree::new();
    let mut through_links = BTreeSet::new();
    for (number, layer) in layers() {
        tree.apply(
            &layer.layer,
            u16::try_from(number).map_err(|_| MergeError::TooManyBlobs)?,
        )
        .map_err(|error| MergeError::Entry { layer: number, error })?;
        if tree.take_followed() {
            through_links.insert(number);
        }
    }
    let used = used_blobs(&tree);
    let mut blobs: Vec<Blob> = Vec::new();
    let mut blob_indexes = Vec::new();
    for (number, layer) in layers() {
        let mut indexes = Vec::new();
        for (own, blob) in layer.blobs.iter().enumerate() {
            // What nothing is stored in has no place, and is never asked for.
            if !used.contains(&(number, own)) {
                indexes.push(0);
                continue;
            }
            let known = blobs.iter().position(|known| known.id == blob.id);
            let index = known.unwrap_or_else(|| {
                blobs.push(blob.clone());
                blobs.len() - 1
            });
            indexes.push(u32::try_from(index).unwrap_or(u32::MAX));
        }
        blob_indexes.push(indexes);
    }
    if blobs.len() > MAX_BLOBS {
        return Err(MergeError::TooManyBlobs);
    }
    Ok(Merged {
        tree,
        blobs,
        blob_indexes,
        through_links,
    })
}

/// Pairs of a layer and one of its blobs.
fn used_blobs(tree: &Tree) -> BTreeSet<(usize, usize)> {
    let mut used = BTreeSet::new();
    tree.walk(|_, id| {
        let node = tree.node(id);
        if let Kind::File(content) = &node.inode.kind {
            let blobs = content.chunks.iter().map(|chunk| chunk.blob as usize);
            used.extend(blobs.map(|blob| (usize::from(node.layer), blob)));
        }
    });
    used
}

impl From<MergeError> for LayerError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Entry { error, .. } => error.into(),
            MergeError::TooManyBlobs => Self::TooManyChunks,
        }
    }
}
