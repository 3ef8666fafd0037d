//! Directories of one run, an image in them, and the two daemons.

use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox::protocol::{ContainerId, SandboxId};
use nydusbox::{MountRequest, Program, SandboxConfig};

use super::{BenchError, Plan};
use crate::image::rafs_config_localfs;

/// A daemon to measure.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) program: Program,
    pub(super) ours: bool,
}

pub(super) fn contenders(plan: &Plan) -> Result<Vec<Contender>, BenchError> {
    let mut all = vec![Contender {
        name: "our daemon",
        program: Program::embedded(&plan.nydusbox)?,
        ours: true,
    }];
    if let Some(nydusd) = &plan.nydusd {
        all.push(Contender {
            name: "nydusd",
            program: Program::stock(nydusd)?,
            ours: false,
        });
    }
    Ok(all)
}

/// Where a run takes place; removed with it.
#[derive(Debug)]
pub(super) struct Place {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(plan: &Plan) -> Result<Self, BenchError> {
        let dir_in = |place: &Path| tempfile::Builder::new().prefix("nb").tempdir_in(place);
        let (dir, state) = (dir_in(&plan.work_dir)?, dir_in(&plan.state_dir)?);
        for name in ["share", "source", "cache"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir, state })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(super) fn config(&self, id: &str, program: &Program) -> Result<SandboxConfig, BenchError> {
        Ok(
            SandboxConfig::new(SandboxId::new(id)?, self.state(), program.clone())?
                .with_share(self.path("share"))?,
        )
    }

    /// A small image on this machine, as `nydusbox image build` makes it.
    pub(super) fn image(&self, nydusbox: &Path) -> Result<Image, BenchError> {
        for n in 0..100 {
            std::fs::write(self.path("source").join(format!("file{n}")), vec![n; 10_000])?;
        }
        let out = self.path("image");
        let built = Command::new(nydusbox)
            .args(["image", "build"])
            .arg(self.path("source"))
            .arg(&out)
            .output()?;
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).into_owned().into());
        }
        Ok(Image {
            bootstrap: out.join("image.boot"),
            config: rafs_config_localfs(&out.join("blobs"), &self.path("cache")),
        })
    }

    pub(super) fn assert_empty(&self) -> Result<(), BenchError> {
        match std::fs::read_dir(self.state())?.next() {
            None => Ok(()),
            Some(left) => Err(format!("left behind: {:?}", left?.path()).into()),
        }
    }
}

/// An image to mount.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) bootstrap: PathBuf,
    pub(super) config: String,
}

impl Image {
    pub(super) fn request(&self, container: &str) -> Result<MountRequest, BenchError> {
        Ok(MountRequest::rafs(
            &ContainerId::new(container)?,
            &self.bootstrap,
            self.config.as_str(),
        )?)
    }
}
