//! Which image a mount is about: named by reference, by file, or by the options of a containerd mount.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use nydusbox_image::source::ImageRef;
use nydusbox_image::{BlobCache, CacheGuard, Quiet};
use nydusbox_protocol::ContainerId;
use nydusbox_rootfs::input::{BOOTSTRAP_HEADER_LEN, RafsImage, RootfsMount};

use super::absolute;
use super::image::bar::{cancelled_by_signals, signals_end_it_again};
use super::image::store;
use super::stored::{Served, StoredArgs};
use crate::control::wire::{ImageBody, MountBody};
use crate::daemon_env;
use crate::data_dir::DataDirArg;
use crate::error::{Failure, USAGE};

/// The type nydus-snapshotter gives its mounts. The options are given without it, and mean nothing under another.
const MOUNT_TYPE: &str = "fuse.nydus-overlayfs";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["image", "bootstrap", "mount_option"])))]
pub(crate) struct ImageArgs {
    /// Image by its reference, as `nydusbox run` takes it; one that is not in nydus' form is converted the first time
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["bootstrap", "mount_option"])]
    image: Option<ImageRef>,
    #[command(flatten)]
    stored: StoredArgs,
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Bootstrap of the RAFS image
    #[arg(
        long,
        value_name = "FILE",
        requires = "config",
        conflicts_with = "mount_option"
    )]
    bootstrap: Option<PathBuf>,
    /// Configuration of the mount as nydusd takes it, JSON or TOML; `-` reads it from standard input
    #[arg(long, value_name = "FILE|-", requires = "bootstrap")]
    config: Option<PathBuf>,
    /// File of the image to fetch ahead, an absolute path inside it (may be repeated)
    #[arg(long, value_name = "PATH", conflicts_with = "mount_option", value_parser = inside_an_image)]
    prefetch_file: Vec<String>,
    /// Option of a snapshotter's mount, `extraoption=…` or `io.katacontainers.volume=…` (may be repeated); `-` reads
    /// options from standard input, one a line, which keeps their credentials off the command line
    #[arg(long, value_name = "OPTION|-")]
    mount_option: Vec<String>,
}

/// An image on its way to a sandbox.
#[derive(Debug)]
pub(super) struct ImageToMount {
    /// The body for `control.sock`.
    pub(super) body: MountBody,
    /// Until the sandbox has it, which is then what tells that it is in use: nobody removes the image, nor what is
    /// cached of it.
    _held: Option<(Served, CacheGuard)>,
}

fn inside_an_image(path: &str) -> Result<String, &'static str> {
    match path.starts_with('/') {
        true => Ok(path.to_owned()),
        false => Err("a path inside an image is absolute"),
    }
}

impl ImageArgs {
    /// Has the image; `snapshotdir` is the directory given beside it.
    pub(super) fn had(
        mut self,
        container: ContainerId,
        snapshotdir: Option<&Path>,
    ) -> Result<ImageToMount, Failure> {
        let Some(reference) = self.image.take() else {
            if let Some(option) = self.stored.option_for_references() {
                return Err(Failure::plain(format!("{option} goes with --image")).code(USAGE));
            }
            let body = self.body(container, snapshotdir)?;
            return Ok(ImageToMount { body, _held: None });
        };
        let data_dir = self.data_dir.resolve()?;
        let ca_certificates = daemon_env::certificates(&self.stored.ca_files(&reference)?)?;
        let served = self
            .stored
            .obtain(&reference, &data_dir, &cancelled_by_signals()?)?;
        signals_end_it_again()?;
        let cached = BlobCache::new(&data_dir.cache())
            .mounting(&Quiet)
            .map_err(|e| store::failure("use the blob cache", &e))?;
        let image = ImageBody {
            bootstrap: served.image.bootstrap.clone(),
            config: served.config.clone(),
            prefetch_files: self.prefetch_file,
            prefetch_parts: served.prefetch.clone(),
        };
        Ok(ImageToMount {
            body: MountBody {
                container,
                images: vec![image],
                snapshotdir: snapshotdir.map(absolute).transpose()?,
                ca_certificates,
            },
            _held: Some((served, cached)),
        })
    }

    /// Whether the image is named by a reference, and may have to be fetched.
    pub(super) fn is_reference(&self) -> bool {
        self.image.is_some()
    }

    /// The body for an image that is named by files or options.
    fn body(self, container: ContainerId, snapshotdir: Option<&Path>) -> Result<MountBody, Failure> {
        let snapshotdir = snapshotdir.map(absolute).transpose()?;
        if let (Some(bootstrap), Some(config)) = (&self.bootstrap, &self.config) {
            let image = ImageBody {
                bootstrap: absolute(bootstrap)?,
                config: read(config)?,
                prefetch_files: self.prefetch_file,
                prefetch_parts: Vec::new(),
            };
            return Ok(MountBody {
                container,
                images: vec![image],
                snapshotdir,
                ca_certificates: String::new(),
            });
        }
        let mut options = Vec::new();
        for option in self.mount_option {
            match option.as_str() {
                "-" => options.extend(read(Path::new("-"))?.lines().map(str::to_owned)),
                _ => options.push(option),
            }
        }
        let mount = RootfsMount {
            mount_type: MOUNT_TYPE.to_owned(),
            source: "overlay".to_owned(),
            options,
        };
        let plan = mount
            .plan()
            .map_err(|e| Failure::new("read the mount's options", &e))?;
        for image in plan.images() {
            check_header(image)?;
        }
        let images = plan.images().iter().map(|image| ImageBody {
            bootstrap: image.source().as_path().to_owned(),
            config: image.config().expose().to_owned(),
            prefetch_files: Vec::new(),
            prefetch_parts: Vec::new(),
        });
        Ok(MountBody {
            container,
            images: images.collect(),
            snapshotdir: snapshotdir.or_else(|| Some(plan.snapshot_dir().as_path().to_owned())),
            ca_certificates: String::new(),
        })
    }
}

/// Whether an image is what the option says: found out here, an error can tell the user which option is wrong.
fn check_header(image: &RafsImage) -> Result<(), Failure> {
    let path = image.source().as_path();
    let mut header = Vec::with_capacity(BOOTSTRAP_HEADER_LEN);
    File::open(path)
        .and_then(|file| file.take(BOOTSTRAP_HEADER_LEN as u64).read_to_end(&mut header))
        .map_err(|e| Failure::new(&format!("read the bootstrap {}", path.display()), &e))?;
    image
        .check_header(&header)
        .map_err(|e| Failure::new("use the mount's options", &e))
}

fn read(file: &Path) -> Result<String, Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        return std::io::stdin()
            .read_to_string(&mut text)
            .map(|_| text)
            .map_err(|e| Failure::new("read standard input", &e));
    }
    std::fs::read_to_string(file)
        .map_err(|e| Failure::new(&format!("read the configuration {}", file.display()), &e))
}
