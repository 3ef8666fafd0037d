//! Going on from a template: a new process gets a copy of the memory and the devices' state.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::provide::reassure;
use super::qmp::QmpError;
use super::spawn::Spawned;
use crate::template::{Template, memory};

/// Why a machine did not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("cannot copy the template's memory: {0}")]
    Memory(io::Error),
    #[error("QEMU did not take the template's state: {0}")]
    State(io::Error),
    #[error("cannot write to the guest: {0}")]
    Control(io::Error),
}

/// Lets a process that was started for it go on from `template`. Once this returns, the guest runs.
pub(super) async fn restore(spawned: &mut Spawned, template: &Arc<Template>) -> Result<(), RestoreError> {
    let (to, from) = (Arc::clone(&spawned.memory), Arc::clone(template));
    // While QEMU comes up. It goes on by itself when it has the state, so that comes last; and if we are killed before,
    // it finds the pipe's end instead and gives up.
    let copied = tokio::task::spawn_blocking(move || memory::copy(&from.memory, &to));
    let greet = async {
        spawned.qmp.greet().await?;
        spawned.qmp.set_up_migration().await
    };
    let (copied, greeted) = tokio::join!(copied, greet);
    copied
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        .map_err(RestoreError::Memory)?;
    greeted?;
    let mut state = spawned.state.take().expect("it was started for this");
    state
        .write_all(template.after_first_byte())
        .await
        .map_err(RestoreError::State)?;
    drop(state);
    spawned.qmp.wait_for("RESUME").await?;
    let [.., control] = &mut spawned.ports;
    reassure(control).await.map_err(RestoreError::Control)
}
