//! How registries are reached: the options of every command that takes an image's reference.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use nydusbox_image::source::{AccessOptions, ImageRef, RegistryError};

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
    /// For a command that reads `source` and writes what it makes of it, until it is `cancelled`.
    pub(crate) fn access_between(&self, source: &ImageRef, cancelled: &Arc<AtomicBool>) -> AccessOptions {
        let mut access = self.access_until(cancelled);
        if let ImageRef::Docker { name } = source {
            access.mount_from = Some(name.clone());
        }
        access
    }

    /// For a command that reads, until it is `cancelled`.
    pub(crate) fn access_until(&self, cancelled: &Arc<AtomicBool>) -> AccessOptions {
        let mut access = self.access();
        access.stop = Some(Arc::clone(cancelled));
        access
    }

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

/// What the user can do about a registry that does not do what it is asked.
pub(crate) fn remedy(error: &RegistryError) -> Option<String> {
    Some(match error {
        RegistryError::NoCredentials { host } | RegistryError::Unauthorized { host } => {
            format!("log in with `docker login {host}`, or name a file with other credentials by --authfile")
        }
        RegistryError::PushDenied { repository, .. } => format!(
            "the account has to be permitted to push to {repository}; a file with other credentials is named by \
             --authfile"
        ),
        RegistryError::RequestTooLarge { .. } => {
            "raise the limit of the registry, or of the proxy in front of it (nginx: client_max_body_size)"
                .to_owned()
        }
        RegistryError::TooManyRequests { .. } | RegistryError::Status { status: 500.., .. } => {
            "try again later: what is complete by now is not transferred again".to_owned()
        }
        _ => return None,
    })
}
