//! What a machine gets once it is known what it is for: the share, random numbers, and its parameters.

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nydusbox_rootfs::ShareDevice;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use super::arguments::{RANDOM_PORT, SHARE_PORT};
use super::config::VmConfig;
use super::qmp::{Qmp, QmpError};
use crate::initramfs::params;

/// What a machine could not be given.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProvideError {
    /// It is QEMU's to say.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Nobody listens.
    #[error("cannot connect to the daemon at {socket:?}: {source}")]
    Daemon { socket: PathBuf, source: io::Error },
    /// The guest's control port is gone.
    #[error("cannot write to the guest")]
    Control(#[source] io::Error),
}

/// Tells a guest that waits that somebody is here; which it waits for no longer than 30 s (`init.sh`).
pub(super) async fn reassure(control: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    control.write_all(b"wait\n").await
}

/// A machine whose guest waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) qmp: Qmp,
    /// To the guest.
    pub(super) control: OwnedWriteHalf,
}

/// Gives it what `config` says, and returns the way to the guest.
pub(super) async fn provide(
    waiting: Waiting,
    config: &VmConfig,
    marker: &str,
) -> Result<OwnedWriteHalf, ProvideError> {
    let Waiting { mut qmp, mut control } = waiting;
    let spec = config.spec();
    plug_in_share(&mut qmp, &spec.share).await?;
    plug_in_random_numbers(&mut qmp).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let parameters = params::write(spec, marker, now);
    let mut message = format!("{}\n", parameters.len()).into_bytes();
    message.extend(parameters);
    control.write_all(&message).await.map_err(ProvideError::Control)?;
    Ok(control)
}

/// The connection is ours to make: its error says more than QEMU's, and a path may have any length and bytes.
async fn plug_in_share(qmp: &mut Qmp, share: &ShareDevice) -> Result<(), ProvideError> {
    let socket = share.socket.as_path();
    let failed = |source| ProvideError::Daemon {
        socket: socket.to_owned(),
        source,
    };
    let connection = UnixStream::connect(socket).await.map_err(failed)?;
    qmp.give(&connection, "fs").await?;
    drop(connection);
    let address = json!({ "type": "fd", "data": { "str": "fs" } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    qmp.execute("chardev-add", json!({ "id": "fs", "backend": backend }))
        .await?;
    let device = json!({
        "driver": "vhost-user-fs-pci",
        "bus": SHARE_PORT,
        "chardev": "fs",
        "queue-size": share.queue_size.entries(),
        "tag": share.tag.as_str(),
    });
    Ok(qmp.execute("device_add", device).await?)
}

/// A guest that goes on from a template has had none, and needs ones of its own.
async fn plug_in_random_numbers(qmp: &mut Qmp) -> Result<(), ProvideError> {
    qmp.execute("object-add", json!({ "qom-type": "rng-builtin", "id": "random" }))
        .await?;
    let device = json!({ "driver": "virtio-rng-pci", "bus": RANDOM_PORT, "rng": "random" });
    Ok(qmp.execute("device_add", device).await?)
}
