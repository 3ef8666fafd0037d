//! Debian packages: asked for, and installed when they are missing and we may.

use std::process::Command;

use crate::command::Cmd;
use crate::error::TaskError;

/// A package, and what for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    why: &'static str,
    /// The service it would start now and at every boot. Only its program is wanted.
    service: Option<&'static str>,
}

impl Package {
    const fn without_service(mut self, name: &'static str) -> Self {
        self.service = Some(name);
        self
    }
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package {
        name,
        why,
        service: None,
    }
}

/// What compiling this workspace takes, besides Rust.
pub(crate) const BUILD: &[Package] = &[
    package(
        "build-essential",
        "links programs and compiles the C code of some dependencies",
    ),
    package("cmake", "builds zlib-ng for nydus-utils"),
];

/// What the genuine virtiofsd links with.
pub(crate) const VIRTIOFSD: &[Package] = &[
    package("libseccomp-dev", "virtiofsd links with it"),
    package("libcap-ng-dev", "virtiofsd links with it"),
];

/// What boots the microVM.
pub(crate) const VM: &[Package] = &[package("qemu-system-x86", "boots the microVM")];

/// A registry to push to and to start from.
const REGISTRY: Package =
    package("docker-registry", "is the registry that images come from").without_service("docker-registry");
const SKOPEO: Package = package("skopeo", "writes images in every form, and reads ours");
const UMOCI: Package = package("umoci", "makes and unpacks the images that are converted");

/// What the demo takes beside that: a registry, and what makes and unpacks images without us.
pub(crate) const IMAGES: &[Package] = &[REGISTRY, SKOPEO, UMOCI];

/// What the tests call beside that.
pub(crate) const TESTS: &[Package] = &[
    package("containerd", "is given the documented configuration").without_service("containerd"),
    REGISTRY,
    package("fuse3", "its mount.fuse3 is how containerd calls a mount helper"),
    // Its installation fails without its service.
    package("nginx-light", "is the caching proxy that blobs go through"),
    package("openssl", "makes the certificate of a registry that speaks TLS"),
    SKOPEO,
    UMOCI,
    package("time", "says how much memory a program took at its peak"),
    package("strace", "kills a supervisor at every system call it makes"),
];

/// What makes a Debian root file system.
pub(crate) const ROOTFS: &[Package] = &[package("mmdebstrap", "makes a Debian root file system")];

/// Installs those of `packages` that are missing, saying so; without root, says what to run and stops.
pub(crate) fn ensure(packages: &[&[Package]]) -> Result<(), TaskError> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    for package in &missing {
        eprintln!(
            "xtask: Debian package {} is missing: {}",
            package.name, package.why
        );
    }
    // Nothing starts what has neither a unit nor a script: asking for less is simpler, and safer to interrupt,
    // than stopping and disabling it afterwards.
    let left_out: String = missing
        .iter()
        .filter_map(|package| package.service)
        .flat_map(|name| {
            [
                format!("/lib/systemd/system/{name}.service"),
                format!("/etc/init.d/{name}"),
            ]
        })
        .map(|path| format!("--option DPkg::Options::=--path-exclude={path} "))
        .collect();
    let install = format!(
        "apt-get install --yes --no-install-recommends {left_out}{}",
        names.join(" ")
    );
    if !is_root() {
        return Err(TaskError::NeedsRoot { command: install });
    }
    with_package_lists(|| apt_get().words(install.trim_start_matches("apt-get ")).shown())
}

/// Does what needs apt's package lists; should it fail, fetches the lists and does it again. (A container
/// image comes without any.)
pub(crate) fn with_package_lists<T>(act: impl Fn() -> Result<T, TaskError>) -> Result<T, TaskError> {
    match act() {
        Err(_) if is_root() => {
            eprintln!("xtask: that failed; fetching the package lists and trying again");
            apt_get().arg("update").shown()?;
            act()
        }
        done => done,
    }
}

/// apt-get, asking no questions. A machine that has just been made often updates itself: that is waited for.
pub(crate) fn apt_get() -> Cmd {
    Cmd::new("apt-get")
        .args(["--option", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive")
}

/// The machine's Debian repositories, as lines of a sources.list: what apt's own configuration says, and
/// only what calls itself Debian. Empty on another distribution, or before any list was fetched.
pub(crate) fn sources() -> Result<Vec<String>, TaskError> {
    let format = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let listed = Cmd::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .output()?;
    let mut sources: Vec<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("Debian "))
        .map(|repository| format!("deb {repository}"))
        .collect();
    sources.dedup();
    Ok(sources)
}

fn missing(packages: &[&[Package]]) -> Result<Vec<Package>, TaskError> {
    let packages: Vec<Package> = packages.concat();
    let names = packages.iter().map(|package| package.name);
    // dpkg-query fails if it knows nothing of one of them; the answer about the others stands.
    let known = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(names.clone())
        .output()
        .map_err(|source| TaskError::NotDebian {
            packages: names.collect::<Vec<_>>().join(" "),
            source,
        })?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let installed = |name: &str| {
        known
            .lines()
            .any(|line| line.split_once(' ') == Some((name, "installed")))
    };
    Ok(packages
        .into_iter()
        .filter(|package| !installed(package.name))
        .collect())
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
