//! Counters, as nydus keeps them, in nydusd's shapes.
//!
//! File-system counters are kept by mount point. Counters of backends are kept by blob and those of caches by the
//! configuration's own `id`; where the `id` asked for is a mount point, what belongs to that mount is found.

use nydus_utils::metrics as nydus;
use nydusbox_protocol::{ErrorCode, MountPoint};

use super::handler::json;
use super::{Answer, Context, query};
use crate::namespace::MountRecord;

/// nydus' error type is private; the one case it has besides a failed serialisation is "no such counters".
fn exported(result: Result<String, impl std::fmt::Display>) -> Answer {
    match result {
        Ok(text) => Answer::Json(text),
        Err(e) => Answer::failed(
            ErrorCode::NoCounter,
            format!("there are no counters under that id ({e}); give the mount point as `id`"),
        ),
    }
}

pub(super) fn events() -> Answer {
    exported(nydus::export_events())
}

pub(super) fn global(q: &str) -> Answer {
    exported(nydus::export_global_stats(&query::value(q, "id")))
}

pub(super) fn files(q: &str) -> Answer {
    let latest = query::value(q, "latest").is_some_and(|v| v == "true");
    exported(nydus::export_files_stats(&query::value(q, "id"), latest))
}

pub(super) fn pattern(q: &str) -> Answer {
    exported(nydus::export_files_access_pattern(&query::value(q, "id")))
}

pub(super) fn backend(context: &Context, q: &str) -> Answer {
    let id = query::value(q, "id");
    let id = mounted(context, id.as_deref())
        .and_then(|record| record.first_blob())
        .or(id);
    exported(nydus::export_backend_metrics(&id))
}

pub(super) fn blobcache(context: &Context, q: &str) -> Answer {
    let id = query::value(q, "id");
    let id = mounted(context, id.as_deref())
        .and_then(|record| record.cache_id())
        .or(id);
    exported(nydus::export_blobcache_metrics(&id))
}

pub(super) fn inflight(context: &Context) -> Answer {
    let list = context.device.pool().inflight().list();
    if list.is_empty() {
        Answer::Done
    } else {
        json(&list)
    }
}

fn mounted(context: &Context, id: Option<&str>) -> Option<MountRecord> {
    context.namespace.record(&MountPoint::new(id?).ok()?)
}
