//! How registries are reached: the options of every command that takes an image's reference.

use std::path::PathBuf;

use clap::Args;
use nydusbox_image::source::AccessOptions;

#[derive(Debug, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArgs {
    /// File with credentials, as docker's config.json; $DOCKER_CONFIG/config.json or ~/.docker/config.json
    /// unless given
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Certificates (PEM) of an authority to trust beside the system's; may be repeated
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
    /// Take any certificate for the registry's
    #[arg(long)]
    tls_skip_verify: bool,
    /// Talk to the registry without TLS; those of this machine are talked to like that anyway
    #[arg(long, conflicts_with_all = ["tls_ca", "tls_skip_verify"])]
    plain_http: bool,
    /// Directory with a hosts.toml or certificates for each registry; /etc/containerd/certs.d and
    /// /etc/docker/certs.d unless given
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
}

impl RegistryArgs {
    pub(crate) fn access(&self) -> AccessOptions {
        let mut access = AccessOptions::default();
        access.auth_file.clone_from(&self.authfile);
        access.hosts_dir.clone_from(&self.hosts_dir);
        access.ca_files.clone_from(&self.tls_ca);
        access.plain_http = self.plain_http;
        access.skip_verify = self.tls_skip_verify;
        access
    }
}
