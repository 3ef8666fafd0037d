//! Everything that is counted, in Prometheus' text format. Pure: figures in, text out.
//!
//! Names, units and labels follow Prometheus' conventions; docs/metrics.md lists them for its users.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use nydusbox_protocol::FsType;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::fetches::{BOUNDS_MS, FetchTotals};
use super::operation::{READ, WRITE};
use super::tally::{BOUNDS_NS, Totals};

/// What an answer with this text is.
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Begins every name.
const PREFIX: &str = "nydusbox_fsd";

/// A daemon's figures at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    /// `--id`; a label of everything, so that the figures of several daemons can be put together.
    pub(crate) id: Option<String>,
    pub(crate) version: String,
    pub(crate) profile: String,
    pub(crate) vmm_connected: bool,
    pub(crate) workers: usize,
    pub(crate) workers_busy: usize,
    pub(crate) workers_max: usize,
    /// Requests that wait in each queue, the high-priority one first.
    pub(crate) queues: Vec<u16>,
    pub(crate) mounts: Vec<MountScrape>,
}

/// One mount's figures.
#[derive(Debug, Clone)]
pub(crate) struct MountScrape {
    pub(crate) mount: String,
    pub(crate) fs_type: FsType,
    pub(crate) totals: Totals,
    pub(crate) in_flight: usize,
    /// The age of the request that has been served for longest; zero if there is none.
    pub(crate) oldest: Duration,
    /// What an image has fetched.
    pub(crate) fetches: Option<FetchTotals>,
}

/// Labels of one series.
type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// Writes figures as text.
///
/// # Errors
/// None that is known: the text goes to memory.
pub(crate) fn render(scrape: Scrape) -> Result<String, fmt::Error> {
    let labels = scrape.id.clone().map(|id| (Cow::Borrowed("id"), Cow::Owned(id)));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.daemon(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.images(&mut encoder)
    }
}

impl Scrape {
    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let build = [
            ("version", self.version.as_str()),
            ("profile", self.profile.as_str()),
        ];
        encoder
            .encode_descriptor("build", "Where this daemon comes from", None, MetricType::Info)?
            .encode_info(&build)?;
        let one = |value: u64| std::iter::once((Labels::new(), value));
        gauge(
            encoder,
            "vmm_connected",
            "1 while a VMM is connected to the vhost-user socket",
            one(self.vmm_connected.into()),
        )?;
        let workers = [
            ("workers", "Threads that serve requests", self.workers),
            (
                "workers_busy",
                "Threads that serve or look for requests now",
                self.workers_busy,
            ),
            (
                "workers_max",
                "Threads there may be when all wait for blobs",
                self.workers_max,
            ),
        ];
        for (name, help, count) in workers {
            gauge(encoder, name, help, one(count as u64))?;
        }
        let queues = self.queues.iter().enumerate().map(|(n, depth)| {
            let name = n
                .checked_sub(1)
                .map_or("hiprio".into(), |n| format!("request{n}").into());
            (vec![("queue", name)], u64::from(*depth))
        });
        gauge(
            encoder,
            "queue_depth",
            "Requests that the guest has queued and nobody has taken yet",
            queues,
        )
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(
            encoder,
            "mount_info",
            "What is mounted; always 1",
            self.mounts.iter().map(|mount| {
                let fs_type = match mount.fs_type {
                    FsType::Rafs => "rafs",
                    FsType::PassthroughFs => "passthrough_fs",
                };
                (
                    vec![
                        ("mount", mount.mount.as_str().into()),
                        ("fs_type", fs_type.into()),
                    ],
                    1_u64,
                )
            }),
        )?;
        counter(
            encoder,
            "operations",
            "FUSE requests that were answered",
            self.by_operation()
                .map(|(labels, totals)| (labels, totals.count())),
        )?;
        counter(
            encoder,
            "operation_errors",
            "FUSE requests that were answered with an error; ENOENT of a lookup and ENODATA of a getxattr are none",
            self.by_operation()
                .map(|(labels, totals)| (labels, totals.errors)),
        )?;
        let mut family = encoder.encode_descriptor(
            "operation_duration_seconds",
            "From taking a FUSE request off the queue until it was answered",
            None,
            MetricType::Histogram,
        )?;
        for (labels, totals) in self.by_operation() {
            histogram(
                &mut family,
                &labels,
                totals.nanoseconds,
                &totals.latency,
                &BOUNDS_NS,
            )?;
        }
        counter(
            encoder,
            "read_bytes",
            "Content that guests have read",
            self.by_mount(|mount| mount.totals.of(READ).bytes),
        )?;
        counter(
            encoder,
            "written_bytes",
            "Content that guests have written",
            self.by_mount(|mount| mount.totals.of(WRITE).bytes),
        )?;
        gauge(
            encoder,
            "requests_in_flight",
            "FUSE requests that are being served",
            self.by_mount(|mount| mount.in_flight as u64),
        )?;
        gauge(
            encoder,
            "oldest_request_age_seconds",
            "How long the FUSE request that began first has been served; 0 if none is",
            self.by_mount(|mount| mount.oldest.as_secs_f64()),
        )
    }

    fn images(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        counter(
            encoder,
            "cache_hits",
            "READs of an image that found everything in the cache",
            self.by_image(|mount, fetches| {
                let read = mount.totals.of(READ);
                read.count()
                    .saturating_sub(read.errors)
                    .saturating_sub(fetches.misses)
            }),
        )?;
        counter(
            encoder,
            "cache_misses",
            "READs of an image that had to wait for the backend",
            self.by_image(|_, fetches| fetches.misses),
        )?;
        let reasons = || {
            self.mounts.iter().flat_map(|mount| {
                let fetches = mount.fetches.iter().flat_map(FetchTotals::reasons);
                fetches.map(|(reason, totals)| {
                    let labels: Labels<'_> =
                        vec![("mount", mount.mount.as_str().into()), ("reason", reason.into())];
                    (labels, totals)
                })
            })
        };
        counter(
            encoder,
            "backend_requests",
            "Requests to blob backends",
            reasons().map(|(labels, totals)| (labels, totals.requests)),
        )?;
        counter(
            encoder,
            "backend_errors",
            "Requests to blob backends that failed",
            reasons().map(|(labels, totals)| (labels, totals.errors)),
        )?;
        counter(
            encoder,
            "backend_read_bytes",
            "What blob backends have sent, as it is in the blob",
            reasons().map(|(labels, totals)| (labels, totals.bytes)),
        )?;
        let mut family = encoder.encode_descriptor(
            "backend_request_duration_seconds",
            "How long requests to blob backends took",
            None,
            MetricType::Histogram,
        )?;
        let bounds = BOUNDS_MS.map(|ms| ms * 1_000_000);
        for mount in &self.mounts {
            if let Some(fetches) = &mount.fetches {
                let labels: Labels<'_> = vec![("mount", mount.mount.as_str().into())];
                histogram(
                    &mut family,
                    &labels,
                    fetches.nanoseconds,
                    &fetches.latency(),
                    &bounds,
                )?;
            }
        }
        Ok(())
    }

    fn by_operation(&self) -> impl Iterator<Item = (Labels<'_>, &super::tally::OperationTotals)> {
        self.mounts.iter().flat_map(|mount| {
            mount.totals.named().map(|(op, totals)| {
                let labels: Labels<'_> = vec![("mount", mount.mount.as_str().into()), ("op", op.into())];
                (labels, totals)
            })
        })
    }

    fn by_mount<'s, T>(
        &'s self,
        value: impl Fn(&MountScrape) -> T + 's,
    ) -> impl Iterator<Item = (Labels<'s>, T)> {
        self.mounts
            .iter()
            .map(move |mount| (vec![("mount", mount.mount.as_str().into())], value(mount)))
    }

    fn by_image<'s>(
        &'s self,
        value: impl Fn(&MountScrape, &FetchTotals) -> u64 + 's,
    ) -> impl Iterator<Item = (Labels<'s>, u64)> {
        self.mounts.iter().filter_map(move |mount| {
            let fetches = mount.fetches.as_ref()?;
            Some((
                vec![("mount", mount.mount.as_str().into())],
                value(mount, fetches),
            ))
        })
    }
}

/// A name that ends in `_total`, which is added here.
fn counter<'s>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels<'s>, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        family
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
    }
    Ok(())
}

fn gauge<'s, T: prometheus_client::encoding::EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels<'s>, T)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// `counts` has one more than there are `bounds_ns`: what took longer than all of them.
fn histogram(
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &Labels<'_>,
    sum_ns: u64,
    counts: &[u64],
    bounds_ns: &[u64],
) -> fmt::Result {
    let bounds = bounds_ns.iter().map(|ns| Duration::from_nanos(*ns).as_secs_f64());
    let buckets: Vec<(f64, u64)> = bounds
        .chain([f64::INFINITY])
        .zip(counts.iter().copied())
        .collect();
    family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
        Duration::from_nanos(sum_ns).as_secs_f64(),
        counts.iter().sum(),
        &buckets,
        None,
    )
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
