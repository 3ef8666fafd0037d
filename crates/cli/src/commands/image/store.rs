//! `nydusbox image pull` and `ls`: the images that are here.

use std::time::SystemTime;

use clap::Args;
use indicatif::DecimalBytes;
use nydusbox_image::source::{ImageRef, Platform};
use nydusbox_image::{GetRequest, PullPolicy, Store, StoreError, StoredEntry, StoredKind};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::bar::{Bar, cancelled_by_signals};
use crate::commands::output::OutputArgs;
use crate::data_dir::{DataDir, DataDirArg};
use crate::error::{Failure, INTERRUPTED};

/// What `run` would do before it starts anything. An image that is not in nydus' form is converted.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Image: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or dir:DIR
    image: ImageRef,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
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
    let request = GetRequest::new(args.platform.unwrap_or_default()).policy(PullPolicy::Always);
    let bar = Bar::new(cancelled_by_signals()?);
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

pub(super) fn open(data_dir: &DataDir) -> Result<Store, Failure> {
    let dir = data_dir.images();
    Store::open(&dir).map_err(|e| Failure::new(&format!("open the image store {}", dir.display()), &e))
}

pub(super) fn failure(what: &str, error: &StoreError) -> Failure {
    let failure = Failure::new(what, error);
    match error {
        StoreError::Cancelled => failure.code(INTERRUPTED),
        _ => failure,
    }
}
