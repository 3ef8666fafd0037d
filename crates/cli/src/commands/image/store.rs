//! `nydusbox image pull`, `ls`, `rm` and `gc`: the images that are here.

use std::io;
use std::time::{Duration, SystemTime};

use clap::Args;
use indicatif::DecimalBytes;
use nydusbox::mounted_images;
use nydusbox_image::source::{ImageRef, Platform, RegistryError, SourceError};
use nydusbox_image::{
    BlobCache, CacheReport, GcConfig, GcReport, ImageUse, PullPolicy, Store, StoreError, StoredEntry,
    StoredKind,
};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::bar::{Bar, cancelled_by_signals};
use crate::args::StateDirArg;
use crate::commands::output::OutputArgs;
use crate::commands::registry::RegistryArgs;
use crate::commands::run::claim;
use crate::commands::size::Size;
use crate::commands::stored::FirstUseArgs;
use crate::data_dir::{DataDir, DataDirArg};
use crate::error::{Failure, INTERRUPTED, TAKEN};
use crate::state_dir::StateDir;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What `run` would do before it starts anything. An image that is not in nydus' form is converted.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Image: docker://[HOST/]NAME[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or
    /// dir:DIR
    image: ImageRef,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    first_use: FirstUseArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

/// What other images do not share goes with them. An image that a sandbox has mounted, or that is being run, stays.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Image, as `image ls` names it
    #[arg(required = true)]
    image: Vec<ImageRef>,
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    pub(crate) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

/// What no image needs is what newer ones have replaced, and what processes left that were killed. What sandboxes use
/// stays, be their daemons nydusbox' or stock nydusds.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Remove images, too, that were not used for so many days and are not in use
    #[arg(long, value_name = "DAYS")]
    unused_for: Option<u32>,
    /// Have the blob cache take no more than this: blobs go that were not used for the longest time; what
    /// --cache-quota has said last unless given
    #[arg(long, value_name = "SIZE")]
    quota: Option<Size>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    pub(crate) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

/// An image as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    reference: String,
    platform: String,
    /// Of its manifest in nydus' form.
    digest: String,
    /// Of the manifest that the reference led to.
    source_digest: String,
    kind: StoredKind,
    here_bytes: u64,
    /// RFC 3339.
    last_used: String,
}

impl Listed {
    fn new(entry: &StoredEntry) -> Self {
        Self {
            reference: entry.reference.clone(),
            platform: entry.platform.clone(),
            digest: entry.digest.to_string(),
            source_digest: entry.source_digest.to_string(),
            kind: entry.kind,
            here_bytes: entry.here_bytes,
            // A time that has no such form would be before year 0.
            last_used: utc(entry.last_used).format(&Rfc3339).unwrap_or_default(),
        }
    }
}

pub(super) fn pull(args: PullArgs) -> Result<(), Failure> {
    let what = format!("pull {}", args.image);
    let store = open(&args.data_dir.resolve()?)?;
    let cancelled = cancelled_by_signals()?;
    let request = args
        .first_use
        .request(args.platform.as_ref())
        .access(args.registry.access_until(&cancelled))
        .policy(PullPolicy::Always);
    let bar = Bar::new(cancelled);
    let result = store.get(&args.image, &request, &bar);
    bar.clear();
    let image = result.map_err(|e| failure(&what, &e))?;
    let name = image.reference.to_string();
    let listed = store.list().map_err(|e| failure(&what, &e))?;
    let entry = listed
        .iter()
        .find(|entry| entry.reference == name && entry.platform == image.platform.to_string());
    match entry {
        Some(entry) => args.output.print(&Listed::new(entry), || {
            format!("{name}: {}; {}", closing(entry), entry.digest)
        }),
        None => Err(Failure::plain(format!(
            "{name} is an image directory, which is served where it is"
        ))),
    }
}

pub(super) fn ls(args: LsArgs) -> Result<(), Failure> {
    let listed = open(&args.data_dir.resolve()?)?
        .list()
        .map_err(|e| failure("list the images", &e))?;
    let all: Vec<_> = listed.iter().map(Listed::new).collect();
    args.output.print(&all, || table(&listed))
}

pub(super) fn rm(args: RmArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let names: Vec<_> = args.image.iter().map(ToString::to_string).collect();
    let what = format!("remove {}", names.join(", "));
    let store = open(&args.data_dir.resolve()?)?;
    let bar = Bar::new(cancelled_by_signals()?);
    let result = store.remove(&args.image, &|| in_use(state_dir), &bar);
    bar.clear();
    let report = result.map_err(|e| failure(&what, &e))?;
    args.output.print(&report, || removed(&report))
}

pub(super) fn gc(args: GcArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let data_dir = args.data_dir.resolve()?;
    let store = open(&data_dir)?;
    let config = GcConfig {
        unused_for: args.unused_for.map(|days| DAY * days),
        dry_run: args.dry_run,
    };
    let stay = match args.dry_run {
        true => Vec::new(),
        false => claim::clear(&data_dir.runs()),
    };
    let bar = Bar::new(cancelled_by_signals()?);
    let collected = store.gc(config, &|| in_use(state_dir), &bar);
    let cache = BlobCache::new(&data_dir.cache());
    let quota = match args.quota {
        Some(quota) => Ok(Some(quota.bytes())),
        None => cache.quota(),
    };
    let shrunk = quota.and_then(|quota| {
        let shrunk = quota.map(|bytes| cache.shrink(bytes, args.dry_run, &bar));
        shrunk.transpose()
    });
    bar.clear();
    let report = Collected {
        images: collected.map_err(|e| failure("remove what is not needed", &e))?,
        cache: shrunk.map_err(|e| failure("keep the blob cache within its quota", &e))?,
    };
    args.output.print(&report, || report.text())?;
    if stay.is_empty() {
        return Ok(());
    }
    let stay: Vec<_> = stay
        .iter()
        .map(|(dir, error)| format!("{}: {error}", dir.display()))
        .collect();
    Err(Failure::plain(format!(
        "failed to remove what killed runs have left: {}",
        stay.join("; ")
    )))
}

/// What `gc` did.
#[derive(Debug, Serialize)]
struct Collected {
    images: GcReport,
    cache: Option<CacheReport>,
}

impl Collected {
    fn text(&self) -> String {
        let mut text = removed(&self.images);
        if let Some(cache) = &self.cache {
            text += &format!(
                "\nblob cache: {} of {}, {} of it in use; {} blobs {}",
                DecimalBytes(cache.after_bytes),
                DecimalBytes(cache.before_bytes),
                DecimalBytes(cache.in_use_bytes),
                cache.blobs.len(),
                done(cache.dry_run),
            );
        }
        text
    }
}

/// What the sandboxes have mounted.
fn in_use(state_dir: &StateDir) -> io::Result<Vec<ImageUse>> {
    let mounted = mounted_images(state_dir.path())?;
    let uses = mounted.into_iter().map(|image| ImageUse {
        bootstrap: image.bootstrap,
        by: format!("sandbox {}", image.sandbox),
    });
    Ok(uses.collect())
}

fn removed(report: &GcReport) -> String {
    let done = done(report.dry_run);
    let names = report.references.iter().map(|name| format!("{name}: {done}\n"));
    let mut text: String = names.collect();
    text += &format!("{} files, {} {done}", report.files, DecimalBytes(report.bytes));
    text
}

fn done(dry_run: bool) -> &'static str {
    match dry_run {
        true => "would be removed",
        false => "removed",
    }
}

fn table(all: &[StoredEntry]) -> String {
    let width = |text: fn(&StoredEntry) -> &str, title: &str| {
        let longest = all.iter().map(|entry| text(entry).len()).max();
        longest.unwrap_or(0).max(title.len())
    };
    let (name, platform) = (
        width(|e| &e.reference, "IMAGE"),
        width(|e| &e.platform, "PLATFORM"),
    );
    let mut text = format!(
        "{:name$}  {:platform$}  {:12}  {:9}  {:>10}  LAST USED",
        "IMAGE", "PLATFORM", "DIGEST", "KIND", "HERE"
    );
    for entry in all {
        text += &format!(
            "\n{:name$}  {:platform$}  {:.12}  {:9}  {:>10}  {}",
            entry.reference,
            entry.platform,
            entry.digest.digest(),
            kind(entry.kind),
            DecimalBytes(entry.here_bytes).to_string(),
            minute(entry.last_used),
        );
    }
    text
}

fn closing(entry: &StoredEntry) -> String {
    let here = DecimalBytes(entry.here_bytes);
    match entry.kind {
        StoredKind::Converted => format!("converted, {here} here"),
        StoredKind::Copied => format!("copied, {here} here"),
        _ => format!("{here} here, the data where it is"),
    }
}

fn kind(kind: StoredKind) -> &'static str {
    match kind {
        StoredKind::Converted => "converted",
        StoredKind::Copied => "copied",
        StoredKind::InPlace => "in place",
        StoredKind::Remote => "remote",
        _ => "?",
    }
}

fn utc(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(time)
}

fn minute(time: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    utc(time).format(format).unwrap_or_default()
}

pub(in crate::commands) fn open(data_dir: &DataDir) -> Result<Store, Failure> {
    let dir = data_dir.images();
    Store::open(&dir).map_err(|e| Failure::new(&format!("open the image store {}", dir.display()), &e))
}

pub(in crate::commands) fn failure(what: &str, error: &StoreError) -> Failure {
    let failure = Failure::new(what, error);
    match error {
        StoreError::Cancelled => failure.code(INTERRUPTED),
        StoreError::InUse { .. } => failure.code(TAKEN),
        StoreError::OutOfSpace { .. } => {
            failure.hint("`nydusbox image rm` and `image gc` make room; --data-dir names another place")
        }
        StoreError::NotHere { .. } => failure.hint("`nydusbox image pull` fetches it"),
        StoreError::MissingOriginal { .. } => failure.hint(
            "the image is by reference (--mode ref): `nydusbox image copy` takes such layers along, other tools don't",
        ),
        StoreError::Source(SourceError::Registry(error)) => match registry_hint(error) {
            Some(hint) => failure.hint(hint),
            None => failure,
        },
        _ => failure,
    }
}

/// What the user can do about a registry that does not give what it was asked for.
fn registry_hint(error: &RegistryError) -> Option<String> {
    match error {
        RegistryError::NoCredentials { host } => Some(format!(
            "`docker login {host}` or `skopeo login --authfile FILE {host}` writes them; --authfile FILE names \
             another file"
        )),
        RegistryError::Unauthorized { host } => Some(format!(
            "`docker login {host}` replaces them; --authfile FILE names another file"
        )),
        _ => None,
    }
}
