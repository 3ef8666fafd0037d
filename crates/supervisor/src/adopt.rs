//! Takes over a sandbox whose supervisor was killed, or clears away what is left of it.
//!
//! The directory's lock says that the supervisor is gone, the daemon's lock whether the daemon lives
//! ([`crate::state`]). What the daemon has mounted it is asked; the document may promise more than was done, never
//! less. An adopted sandbox is like one that was started, but for one thing: the daemon is not our child, so how it
//! ended is not known when it does ([`crate::ExitCause::Unknown`]).

use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::{BackendCollection, SandboxId};
use tokio::task::spawn_blocking;
use tracing::Instrument;

use crate::binds::BindBook;
use crate::client::{ApiClient, CallError};
use crate::config::{ConfigError, SandboxConfig};
use crate::daemon::Daemon;
use crate::dir::{DirError, Entered, LOG, LOG_OLD, Leftover, SandboxDir};
use crate::environment;
use crate::error::chain;
use crate::events::EventSink;
use crate::launch::{Running, Serving};
use crate::ledger::Ledger;
use crate::outlet;
use crate::output::{LogFile, Output};
use crate::process::Process;
use crate::remains::Remains;
use crate::sandbox::{Sandbox, noted};
use crate::state::{DaemonLock, Holder, Journal, MountRecord, StateDocument, probe};

/// What became of a sandbox whose supervisor is gone.
#[derive(Debug)]
#[must_use = "dropping a sandbox ends it"]
#[expect(clippy::large_enum_variant, reason = "there is one for a moment, not many")]
pub enum Adoption {
    /// Its daemon lives, and is ours now.
    Running(Sandbox),
    /// Its daemon was dead or to end with its supervisor, or the sandbox was being started or stopped: it is gone.
    CleanedUp {
        /// What could not be removed; normally nothing.
        leftovers: Vec<Leftover>,
    },
}

/// Why a sandbox was not taken over. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// There is no such sandbox.
    #[error("find a sandbox in {path:?}")]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// Its directory cannot be used: its supervisor lives ([`DirError::Held`]), or its state is not understood.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// Its configuration makes no sense here.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the caller of [`Sandbox::adopt_with`] needs for it cannot be had.
    #[error("prepare to supervise sandbox {sandbox}")]
    Unprepared {
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon or what belongs to it cannot be taken hold of.
    #[error("{action} {path:?}")]
    Take {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl Sandbox {
    /// Takes over the sandbox `id` in `state_dir`, whose supervisor is gone, with its daemon, mounts and binds. When
    /// its daemon is dead or was to end with its supervisor ([`crate::OnSupervisorDeath::Kill`]), or when it was being
    /// started or stopped, it is cleaned up instead.
    ///
    /// # Errors
    /// [`AdoptError`]; the sandbox is then as it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the sandbox as it was, or lets it be cleaned up.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn adopt(state_dir: impl AsRef<Path>, id: &SandboxId) -> Result<Adoption, AdoptError> {
        Self::adopt_with(state_dir, id, |_| Ok(())).await
    }

    /// As [`Sandbox::adopt`], for a caller that cannot do with the sandbox without something of its own: that is
    /// prepared when the sandbox's directory, which it is given, is locked, and before the sandbox is taken. It is not
    /// asked for when there is nothing to take over.
    ///
    /// # Errors
    /// As for [`Sandbox::adopt`], and [`AdoptError::Unprepared`].
    ///
    /// # Cancel safety
    /// As for [`Sandbox::adopt`].
    ///
    /// # Panics
    /// As for [`Sandbox::adopt`].
    pub async fn adopt_with(
        state_dir: impl AsRef<Path>,
        id: &SandboxId,
        prepare: impl FnOnce(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Adoption, AdoptError> {
        let span = tracing::info_span!("adopt", sandbox = %id, error = tracing::field::Empty);
        let adoption = async { noted(Self::take_or_clear(state_dir.as_ref(), id, prepare).await) };
        let adopted = Box::pin(adoption.instrument(span)).await?;
        Ok(match adopted {
            Ok((serving, config, events)) => Adoption::Running(Self::supervise(serving, config, events)),
            Err(leftovers) => Adoption::CleanedUp { leftovers },
        })
    }

    /// Everything a handle needs, or what could not be removed.
    async fn take_or_clear(
        state_dir: &Path,
        id: &SandboxId,
        prepare: impl FnOnce(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Result<(Serving, SandboxConfig, EventSink), Vec<Leftover>>, AdoptError> {
        let path = std::path::absolute(state_dir)
            .map_err(|source| take("find", state_dir, source))?
            .join(id.as_str());
        let (path, remains) = blocking(move || match SandboxDir::enter(&path)? {
            Entered::Missing => Ok((path, None)),
            Entered::Locked(dir) => Ok((path, Some(Remains::inspect(dir)?))),
        })
        .await?;
        let Some(remains) = remains else {
            return Err(AdoptError::Missing { path });
        };
        let (dir, daemon, document) = match remains.into_daemon() {
            Ok(found) => found,
            Err(remains) => {
                let leftovers = blocking(move || Ok(remains.clear())).await?;
                return Ok(Err(leftovers));
            }
        };
        let config = SandboxConfig::recorded(state_dir, &document)?;
        prepare(config.dir()).map_err(|source| AdoptError::Unprepared {
            sandbox: id.clone(),
            source,
        })?;
        dir.sign()?;
        let events = EventSink::new(id.clone());
        let serving = take_over(&config, dir, daemon, document).await?;
        tracing::info!(sandbox = %id, pid = serving.running.daemon.id(), "adopted");
        Ok(Ok((serving, config, events)))
    }
}

/// Adopts every sandbox in a state directory whose supervisor is gone. What is in use is left out.
///
/// # Errors
/// Only when the directory cannot be read; what is wrong with a sandbox is beside its id.
pub async fn adopt_all(
    state_dir: impl AsRef<Path>,
) -> io::Result<Vec<(SandboxId, Result<Adoption, AdoptError>)>> {
    let state_dir = state_dir.as_ref();
    let entries = match std::fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| SandboxId::new(name).ok()));
    }
    ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    let mut adopted = Vec::new();
    for id in ids {
        match Sandbox::adopt(state_dir, &id).await {
            Err(AdoptError::Dir(DirError::Held { .. }) | AdoptError::Missing { .. }) => {}
            result => adopted.push((id, result)),
        }
    }
    Ok(adopted)
}

/// Everything a driver needs. The daemon is asked first: only what cannot be interrupted any more makes things ours.
async fn take_over(
    config: &SandboxConfig,
    mut dir: SandboxDir,
    daemon: Holder,
    mut document: StateDocument,
) -> Result<Serving, AdoptError> {
    let failed = |action| move |source| take(action, config.dir(), source);
    let mut client =
        ApiClient::new(config.api_socket().clone(), config.call_deadline()).with_secrets(config.secrets());
    let info = client.daemon_info_with_mounts().await;
    if let Err(error) = &info {
        tracing::warn!(
            sandbox = %config.id(),
            error = chain(error),
            "the daemon does not say what it has mounted; all of it is in doubt"
        );
    }
    let info = info.ok();
    let reported = info.as_ref().and_then(|info| info.backend_collection.as_ref());
    if let Some(reported) = reported {
        settle_asked(&mut client, config.id(), &mut document, reported).await;
    }
    for mount in &mut document.mounts {
        settle_replacements(&mut client, config.id(), mount).await;
    }
    let lock = match probe(&dir).map_err(failed("look at the daemon's lock in"))? {
        Some(DaemonLock::Held(inode)) => inode,
        Some(DaemonLock::Taken(_)) | None => {
            // It died while it was asked. Whoever adopts next cleans up.
            return Err(failed("find a living daemon in")(io::ErrorKind::NotFound.into()));
        }
    };
    let pipe = outlet::reopen(&dir).map_err(failed("open the daemon's output in"))?;
    let log = LogFile::resume(&dir.file(LOG), &dir.file(LOG_OLD)).map_err(failed("go on with the log in"))?;
    let output = Output::resume(pipe, log, config.id().clone(), config.secrets().clone())
        .map_err(failed("go on with the log in"))?;
    let cgroup = document.daemon.as_mut().and_then(|record| {
        let path = PathBuf::from(record.cgroup.clone()?.0);
        // An older document does not say; but the daemon lives, and is in it.
        record.cgroup_inode = record
            .cgroup_inode
            .or_else(|| environment::leaf_of(&path, daemon.pid));
        Some((path, record.cgroup_inode?))
    });
    let successor = document.daemon.as_ref().is_some_and(|record| record.successor);
    let journal = Journal::new(&dir, document.clone()).map_err(failed("open"))?;
    let process = Process::adopt(daemon, lock, cgroup).map_err(failed("watch the daemon of"))?;
    dir.own();
    let mut daemon = Daemon::new(process, output);
    daemon.set_version(match &info {
        Some(info) => info.version.package_ver.clone(),
        None => document.program.version,
    });
    Ok(Serving {
        running: Running { daemon, client },
        journal,
        binds: BindBook::recalled(document.binds.into_iter().map(|b| (b.at, b.bind))),
        dir,
        ledger: Ledger::recalled(document.mounts, document.next_slot, reported),
        adopted: true,
        successor,
    })
}

/// A mount that was being made, and is not there, may be yet: the daemon finishes what nobody waits for any more. It is
/// asked away. Then it was not begun, or is undone, as whoever asked for it was not told that it is there; or the daemon
/// is at it, and it stays in doubt.
async fn settle_asked(
    client: &mut ApiClient,
    sandbox: &SandboxId,
    document: &mut StateDocument,
    reported: &BackendCollection,
) {
    let asked = |mount: &MountRecord| !mount.was_there() && !reported.contains_key(mount.at.as_str());
    for mount in std::mem::take(&mut document.mounts) {
        if asked(&mount) {
            // It may have had a slot.
            document.next_slot = None;
            match client.unmount(&mount.at).await {
                Ok(()) | Err(CallError::NotMounted) => continue,
                Err(error) => {
                    tracing::warn!(%sandbox, at = %mount.at, error = chain(&error), "may be being mounted still");
                }
            }
        }
        document.mounts.push(mount);
    }
}

/// A mount that was being given another command has it or has not. It is given it again: then it has. That the daemon
/// says no now does not tell what it said then: it is given those that came before, and what it had at first. Without
/// an answer, or when all is refused, it stays in doubt.
async fn settle_replacements(client: &mut ApiClient, sandbox: &SandboxId, mount: &mut MountRecord) {
    if mount.replacements.is_empty() {
        return;
    }
    let had = std::iter::once(&mount.command);
    for command in mount.replacements.iter().rev().chain(had) {
        match client.remount(&mount.at, command).await {
            Ok(()) => {
                mount.command = command.clone();
                mount.replacements.clear();
                return;
            }
            Err(error) if error.is_definite() => {
                tracing::info!(%sandbox, at = %mount.at, error = chain(&error), "does not get what it was being given");
            }
            Err(error) => {
                tracing::warn!(%sandbox, at = %mount.at, error = chain(&error), "does not answer a remount");
                break;
            }
        }
    }
    tracing::warn!(%sandbox, at = %mount.at, "has one of several configurations");
}

fn take(action: &'static str, path: &Path, source: io::Error) -> AdoptError {
    AdoptError::Take {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Reading `/proc` and waiting for killed processes is not for a thread of the runtime.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, DirError> + Send + 'static,
) -> Result<T, AdoptError> {
    match spawn_blocking(act).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(AdoptError::Take {
            action: "run a thread for",
            path: PathBuf::new(),
            source: error.into(),
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use nydusbox_protocol::{MountCommand, MountPoint, SocketPath};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// What is left of a doubt about `/old`, `/1` and `/2` when the daemon answers so, and what it was given.
    async fn settled(answers: &[&str]) -> (MountRecord, Vec<&'static str>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = ApiClient::new(SocketPath::new(path).unwrap(), Duration::from_secs(30));
        let command = |source: &str| MountCommand::rafs(source, "{}").into();
        let mut mount = MountRecord {
            at: MountPoint::new("/m").unwrap(),
            command: command("/old"),
            slot: Some(1),
            unplaced: false,
            replacements: vec![command("/1"), command("/2")],
        };
        let mut given = Vec::new();
        let daemon = async {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let request = String::from_utf8(request).unwrap();
                let named = |source: &&str| request.contains(&format!("\"{source}\""));
                given.extend(["/old", "/1", "/2"].into_iter().find(named));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            // Nobody else comes.
            std::future::pending::<()>().await;
        };
        let sandbox = SandboxId::new("s1").unwrap();
        tokio::select! {
            () = daemon => {}
            () = settle_replacements(&mut client, &sandbox, &mut mount) => {}
        }
        (mount, given)
    }

    const DONE: &str = "HTTP/1.1 204 \r\nConnection: close\r\n\r\n";
    const NO: &str = concat!(
        "HTTP/1.1 500 \r\nConnection: close\r\nContent-Length: 32\r\n\r\n",
        r#"{"code":"BadImage","message":""}"#
    );

    /// The first time it may have been taken.
    #[tokio::test]
    async fn a_remount_that_is_refused_now_is_in_doubt_until_something_is_taken() {
        for (answers, has, given) in [
            (&[DONE][..], "/2", &["/2"][..]),
            (&[NO, DONE], "/1", &["/2", "/1"]),
            (&[NO, NO, DONE], "/old", &["/2", "/1", "/old"]),
        ] {
            let (mount, asked) = settled(answers).await;
            assert_eq!((mount.command.source.as_str(), asked.as_slice()), (has, given));
            assert_eq!(mount.replacements.len(), 0);
        }
        for (answers, given) in [(&[NO, NO, NO][..], 3), (&[NO, ""], 2)] {
            let (mount, asked) = settled(answers).await;
            assert_eq!((mount.command.source.as_str(), asked.len()), ("/old", given));
            let sources: Vec<_> = mount.replacements.iter().map(|c| c.source.as_str()).collect();
            assert_eq!(sources, ["/1", "/2"]);
        }
    }
}
