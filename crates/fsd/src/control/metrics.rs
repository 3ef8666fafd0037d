//! Counters, in nydusd's shapes and in Prometheus'.
//!
//! Figures of what guests ask are kept here by mount, and go with the mount (`crate::metrics`). What nydus records of
//! single files, of caches by the configuration's `id`, and of backends that are left to it, is taken from nydus.

use std::time::Duration;

use nydus_utils::metrics as nydus;
use nydusbox_protocol::{ErrorCode, FsType, MountPoint};

use super::handler::json;
use super::{Answer, Context, query};
use crate::metrics::nydus::FsStats;
use crate::metrics::prometheus::{MountScrape, Scrape, render};
use crate::namespace::MountRecord;

const NO_COUNTERS: &str = "there are no counters under that id; give the mount point as `id`";

/// nydus' error type is private; the one case it has besides a failed serialisation is "no such counters".
fn exported(result: Result<String, impl std::fmt::Display>) -> Answer {
    match result {
        Ok(text) => Answer::Json(text),
        Err(_) => no_counters(),
    }
}

fn no_counters() -> Answer {
    Answer::failed(ErrorCode::NoCounter, NO_COUNTERS)
}

pub(super) fn events() -> Answer {
    exported(nydus::export_events())
}

pub(super) fn global(context: &Context, q: &str) -> Answer {
    let Some((at, record)) = asked_for(context, q) else {
        return no_counters();
    };
    let totals = context.namespace.totals(&record.counted);
    json(&FsStats::of(at.as_str(), &totals, record.counted.recording))
}

pub(super) fn files(context: &Context, q: &str) -> Answer {
    let latest = query::value(q, "latest").is_some_and(|v| v == "true");
    match asked_for(context, q) {
        None => no_counters(),
        Some((at, record)) if record.counted.recording.any() => {
            exported(nydus::export_files_stats(&Some(at.to_string()), latest))
        }
        // As nydus shows it when nothing is recorded.
        Some(_) => Answer::Json(if latest { "[]" } else { "{}" }.to_owned()),
    }
}

pub(super) fn pattern(context: &Context, q: &str) -> Answer {
    match asked_for(context, q) {
        None => no_counters(),
        Some((at, record)) if record.counted.recording.any() => {
            exported(nydus::export_files_access_pattern(&Some(at.to_string())))
        }
        Some(_) => Answer::Json("[]".to_owned()),
    }
}

pub(super) fn backend(context: &Context, q: &str) -> Answer {
    let id = query::value(q, "id");
    match asked_for(context, q) {
        Some((_, record)) => match (&record.counted.fetches, record.backend_type()) {
            (Some(fetches), Some(backend_type)) => json(&fetches.totals().as_nydus(&backend_type)),
            _ => exported(nydus::export_backend_metrics(&record.first_blob())),
        },
        // A blob's own.
        None => exported(nydus::export_backend_metrics(&id)),
    }
}

pub(super) fn blobcache(context: &Context, q: &str) -> Answer {
    let id = query::value(q, "id");
    let id = asked_for(context, q)
        .and_then(|(_, record)| record.cache_id())
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

/// The mount whose mount point is the query's `id`; without one, the image that is mounted, if it is the only one.
fn asked_for(context: &Context, q: &str) -> Option<(MountPoint, MountRecord)> {
    let at = match query::value(q, "id") {
        Some(id) => MountPoint::new(id).ok()?,
        None => {
            let mounts = context.namespace.counted();
            let mut images = mounts
                .into_iter()
                .filter(|(_, fs_type, _)| *fs_type == FsType::Rafs);
            let (at, ..) = images.next()?;
            images.next().is_none().then_some(at)?
        }
    };
    let record = context.namespace.record(&at)?;
    Some((at, record))
}

/// Everything, as Prometheus reads it.
pub(super) fn prometheus(context: &Context) -> Answer {
    match render(scrape(context)) {
        Ok(text) => Answer::Metrics(text),
        Err(e) => Answer::failed(
            ErrorCode::Internal,
            format!("the figures could not be written: {e}"),
        ),
    }
}

fn scrape(context: &Context) -> Scrape {
    let pool = context.device.pool();
    let crew = pool.crew();
    let in_flight = pool.inflight().list();
    let namespace = &context.namespace;
    let mounts = namespace.counted().into_iter().map(|(at, fs_type, counted)| {
        let here = in_flight
            .iter()
            .filter(|request| namespace.place_of(request.inode) == counted.place);
        let ages: Vec<u64> = here.map(|request| request.age_ms).collect();
        MountScrape {
            mount: at.to_string(),
            fs_type,
            totals: namespace.totals(&counted),
            in_flight: ages.len(),
            oldest: Duration::from_millis(ages.into_iter().max().unwrap_or(0)),
            fetches: counted.fetches.map(|fetches| fetches.totals()),
        }
    });
    Scrape {
        id: context.id.clone(),
        version: context.version.package_ver.clone(),
        profile: context.version.profile.clone(),
        vmm_connected: context.device.attached(),
        workers: crew.workers,
        workers_busy: crew.busy,
        workers_max: crew.max,
        queues: context
            .device
            .rings()
            .iter()
            .map(crate::transport::Ring::depth)
            .collect(),
        mounts: mounts.collect(),
    }
}
