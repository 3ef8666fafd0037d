//! nydus' table of blob caches, one for all images.
//!
//! It keeps whatever was opened until it is asked to drop what nobody uses, and shuts the backends of that down. One
//! that is just being opened looks unused; so nothing is dropped in that moment.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use nydus_api::ConfigV2;
use nydus_storage::cache::BlobCache;
use nydus_storage::device::{BlobDevice, BlobInfo};
use nydus_storage::factory::BLOB_FACTORY;

/// Read: something is being opened. Write: what is unused is dropped.
static OPENING: RwLock<()> = RwLock::new(());

/// Opens nydus' side of a blob.
///
/// # Errors
/// nydus' own.
pub(super) fn open_blob(config: &Arc<ConfigV2>, info: &Arc<BlobInfo>) -> io::Result<Arc<dyn BlobCache>> {
    let _opening = OPENING.read().unwrap_or_else(PoisonError::into_inner);
    BLOB_FACTORY.new_blob_cache(config, info)
}

/// Opens nydus' side of all blobs of an image.
///
/// # Errors
/// nydus' own.
pub(super) fn open_device(config: &Arc<ConfigV2>, infos: &[Arc<BlobInfo>]) -> io::Result<BlobDevice> {
    let _opening = OPENING.read().unwrap_or_else(PoisonError::into_inner);
    BlobDevice::new(config, infos)
}

/// Drops what nobody uses any more. While something is being opened, that is left to the next time.
pub(crate) fn drop_unused() {
    if let Ok(_nothing_opens) = OPENING.try_write() {
        BLOB_FACTORY.gc(None);
    }
}
