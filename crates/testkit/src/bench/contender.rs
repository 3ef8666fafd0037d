//! A daemon that takes part, with the guest that puts load on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BenchError;
use super::call::{self, Call, Expected, Shape};
use super::dataset::{DATA, Dataset};
use super::driver::{Check, Load, Until, Wait, drive};
use super::histogram::Sample;
use super::plan::{Plan, Work};
use super::report::Kind;
use crate::daemon::{DaemonProcess, Program};
use crate::guest::fuse::ops;
use crate::guest::{FuseClient, FuseError, GuestConfig, GuestError, Lane};
use crate::image;
use crate::virtiofsd::Virtiofsd;

/// As many prepared calls as stay in a processor's cache beside what is measured.
const MOST_CALLS: usize = 4096;

/// A program with the way it is started.
#[derive(Debug, Clone)]
pub(super) struct Entrant {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    program: EntrantProgram,
}

#[derive(Debug, Clone)]
enum EntrantProgram {
    Nydus(Program),
    Virtiofsd { path: PathBuf, pool: &'static str },
}

/// Everybody who takes part: those who serve the image first.
pub(super) fn entrants(plan: &Plan) -> Vec<Entrant> {
    let nydus = |name, kind, program: Program| Entrant {
        name,
        kind,
        program: EntrantProgram::Nydus(program),
    };
    let ours = || Program::Nydusbox(plan.nydusbox.clone());
    let mut all = vec![nydus("nydusbox rafs", Kind::Rafs, ours())];
    let nydusd = plan.nydusd.clone().map(Program::Nydusd);
    all.extend(nydusd.clone().map(|p| nydus("nydusd rafs", Kind::Rafs, p)));
    all.push(nydus("nydusbox passthrough", Kind::Passthrough, ours()));
    all.extend(nydusd.map(|p| nydus("nydusd passthrough", Kind::Passthrough, p)));
    for (name, pool) in [("virtiofsd pool 0", "0"), ("virtiofsd pool 8", "8")] {
        all.extend(plan.virtiofsd.clone().map(|path| Entrant {
            name,
            kind: Kind::Passthrough,
            program: EntrantProgram::Virtiofsd { path, pool },
        }));
    }
    all.retain(|e| plan.only.takes_contender(e.name));
    all
}

/// A started daemon.
#[derive(Debug)]
pub(super) enum Running {
    Nydus(DaemonProcess),
    Virtiofsd(Virtiofsd),
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Nydus(daemon) => daemon.pid(),
            Self::Virtiofsd(daemon) => daemon.pid(),
        }
    }
}

/// A daemon and its guest, which has mounted and looked everything up.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) daemon: Running,
    pub(super) client: FuseClient,
    root: u64,
    files: Vec<(String, u64, u64)>,
    data: (u64, u64),
    /// A handle of the root, and what is listed first.
    listing: (u64, Expected),
}

/// Where the image's blobs come from, and where they are kept.
pub(super) fn image_config(dataset: &Dataset, blob_server: Option<&str>, cache: &Path) -> String {
    match blob_server {
        None => image::rafs_config_localfs(&dataset.blobs, cache),
        Some(address) => image::rafs_config_http_proxy(address, cache),
    }
}

impl Contender {
    /// Starts the daemon in `dir`, which is made, and mounts. `config` is the image's.
    pub(super) fn start(
        entrant: &Entrant,
        dataset: &Dataset,
        dir: &Path,
        config: &str,
    ) -> Result<Self, BenchError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| BenchError::Start {
            contender: entrant.name.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(|e| failed(e.into()))?;
        let (daemon, socket, root) = match &entrant.program {
            EntrantProgram::Nydus(program) => {
                let daemon = DaemonProcess::spawn(program, dir, &[]).map_err(|e| failed(e.into()))?;
                let body = match entrant.kind {
                    Kind::Rafs => image::mount_body("rafs", &dataset.bootstrap, config),
                    Kind::Passthrough => image::passthrough_body(&dataset.share),
                };
                let answer = daemon.mount("/mnt", &body).map_err(|e| failed(e.into()))?;
                if answer.status != 204 {
                    return Err(failed(answer.body.into()));
                }
                let socket = daemon.vhost_socket();
                (Running::Nydus(daemon), socket, "/mnt")
            }
            EntrantProgram::Virtiofsd { path, pool } => {
                let daemon = Virtiofsd::spawn(path, dir, &dataset.share, &["--thread-pool-size", pool])
                    .map_err(|e| failed(e.into()))?;
                let socket = daemon.socket().to_owned();
                (Running::Virtiofsd(daemon), socket, "/")
            }
        };
        let prepare = |source| BenchError::Prepare {
            contender: entrant.name.to_owned(),
            source,
        };
        let mut client = FuseClient::mount(&socket, GuestConfig::default()).map_err(prepare)?;
        let Looked {
            root,
            files,
            data,
            listing,
        } = look_up(&mut client, root, dataset).map_err(prepare)?;
        Ok(Self {
            name: entrant.name,
            kind: entrant.kind,
            daemon,
            client,
            root,
            files,
            data,
            listing,
        })
    }

    /// The calls of a load and their shape.
    pub(super) fn calls(&self, work: Work, dataset: &Dataset) -> (Shape, Vec<Call>) {
        let name = self.files.first().map_or(0, |f| f.0.len());
        match work {
            Work::Getattr => {
                let of = |(_, node, size): &(String, u64, u64)| call::getattr(*node, *size);
                (call::GETATTR, self.files.iter().map(of).collect())
            }
            Work::Lookup => {
                let of = |(name, node, _): &(String, u64, u64)| call::lookup(self.root, name, *node);
                (call::lookup_shape(name), self.files.iter().map(of).collect())
            }
            Work::List => {
                let (fh, expected) = &self.listing;
                (
                    call::readdirplus_shape(expected.range.len()),
                    vec![call::list(self.root, *fh, expected.clone())],
                )
            }
            Work::Read(size) if size < 1 << 20 => {
                let (shape, mut calls) = self.in_order(size, dataset);
                // An odd stride visits every place of a power of two, in no order worth reading ahead in.
                let places = calls.len();
                calls = (0..places.min(MOST_CALLS))
                    .map(|i| calls[i.wrapping_mul(2_654_435_761) % places].clone())
                    .collect();
                (shape, calls)
            }
            Work::Read(size) => self.in_order(size, dataset),
        }
    }

    /// READs of the large file from its beginning to its end.
    pub(super) fn in_order(&self, size: usize, dataset: &Dataset) -> (Shape, Vec<Call>) {
        let (node, fh) = self.data;
        let calls = (0..dataset.data.len() / size)
            .map(|i| call::read(node, fh, &dataset.data, i * size..(i + 1) * size))
            .collect();
        (call::read_shape(size), calls)
    }

    /// Puts loads on the daemon.
    pub(super) fn drive(
        &mut self,
        row: &'static str,
        loads: &[Load<'_>],
        how: (Wait, Check, Until),
    ) -> Result<Vec<Sample>, BenchError> {
        let failed = |source| BenchError::Run {
            row,
            contender: self.name.to_owned(),
            source,
        };
        let parts = self
            .client
            .guest()
            .parts(Lane::Request(0))
            .ok_or_else(|| failed(GuestError::Disconnected.into()))?;
        drive(parts, loads, how).map_err(failed)
    }
}

/// Bytes asked of a directory at once.
const LISTED: u32 = 16 * 1024;

/// What was found by looking.
struct Looked {
    root: u64,
    files: Vec<(String, u64, u64)>,
    data: (u64, u64),
    listing: (u64, Expected),
}

fn look_up(client: &mut FuseClient, root: &str, dataset: &Dataset) -> Result<Looked, FuseError> {
    let root = client.resolve(root)?.nodeid;
    let mut files = Vec::with_capacity(dataset.files.len());
    for (name, size) in &dataset.files {
        let node = client.lookup(root, name.as_bytes())?.nodeid;
        files.push((name.clone(), node, *size));
    }
    let node = client.lookup(root, DATA.as_bytes())?.nodeid;
    let opened = client.open(node, 0)?;
    let directory = client.opendir(root)?.fh;
    // It stays so: making the image has read every file, and nobody changes one.
    let ticket = client.submit(ops::readdirplus(root, directory, 0, LISTED))?;
    let content: Arc<[u8]> = client.wait(ticket)?.into();
    let expected = Expected {
        at: 0,
        range: 0..content.len(),
        content,
    };
    Ok(Looked {
        root,
        files,
        data: (node, opened.fh),
        listing: (directory, expected),
    })
}
