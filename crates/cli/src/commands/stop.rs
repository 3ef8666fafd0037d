//! `nydusbox stop`: mounts, daemon, sockets, directory and supervisor go.

use clap::{ArgGroup, Args};
use hyper::Method;
use nydusbox::LookedAt;
use nydusbox_protocol::SandboxId;

use super::block_on;
use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::Presence;
use crate::control::wire::{self, Stopped};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// Stop the VMM first: a stock nydusd does not end while its VMM is connected, and is killed
/// after the --stop-grace that it was started with (5 s).
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub(crate) struct StopArgs {
    /// Sandbox to stop
    id: Option<SandboxId>,
    /// Stop every sandbox of the state directory that has a supervisor
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &StopArgs, state_dir: &StateDir) -> Result<(), Failure> {
    block_on(async {
        match &args.id {
            Some(id) => {
                let stopped = stop(Client::of(state_dir, id).await?).await?;
                args.output.print(&stopped, || text(&stopped))?;
                judge(&stopped, is_left(state_dir, &stopped))
            }
            None => all(args.output, state_dir).await,
        }
    })
}

async fn stop(mut client: Client) -> Result<Stopped, Failure> {
    client.change(Method::POST, wire::STOP, None::<&()>).await
}

/// All at once. Those that cannot be stopped are said, each with its reason, and the first gives the exit code.
async fn all(output: OutputArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let mut stopping = tokio::task::JoinSet::new();
    for id in state_dir.list()? {
        let state_dir = state_dir.clone();
        stopping.spawn(async move {
            match Presence::of(&state_dir, &id).await {
                // Another command was quicker.
                Presence::Absent => Ok(None),
                Presence::Live(stream) => stop(Client::greeted(stream, &state_dir, &id).await?)
                    .await
                    .map(Some),
                other => Err(other.failure(&state_dir, &id)),
            }
        });
    }
    let (mut stopped, mut failures) = (Vec::new(), Vec::new());
    while let Some(result) = stopping.join_next().await {
        match result {
            Ok(Ok(one)) => stopped.extend(one),
            Ok(Err(failure)) => failures.push(failure),
            Err(error) => failures.push(Failure::new("stop a sandbox", &error)),
        }
    }
    stopped.sort_by(|a: &Stopped, b| a.id.cmp(&b.id));
    output.print(&stopped, || match stopped.is_empty() {
        true => "nothing to stop".to_owned(),
        false => stopped.iter().map(text).collect::<Vec<_>>().join("\n"),
    })?;
    failures.extend(
        stopped
            .iter()
            .filter_map(|s| judge(s, is_left(state_dir, s)).err()),
    );
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else {
        return Ok(());
    };
    for other in failures {
        let _ = other.exit();
    }
    Err(first)
}

fn text(stopped: &Stopped) -> String {
    let how = match stopped.step.as_str() {
        "exited" => "the daemon ended in order",
        "killed" => "the daemon was killed",
        "already_gone" => "the daemon had ended before",
        other => other,
    };
    let mut text = format!("sandbox {} is stopped: {how}", stopped.id);
    for failure in &stopped.unmount_failures {
        text = format!("{text}\n  {failure}");
    }
    text
}

/// Whether its directory still says what there is to do.
fn is_left(state_dir: &StateDir, stopped: &Stopped) -> bool {
    LookedAt::new(state_dir.sandbox(&stopped.id)).is_some_and(|found| found.is_sandbox())
}

fn judge(stopped: &Stopped, is_left: bool) -> Result<(), Failure> {
    if stopped.leftovers.is_empty() {
        return Ok(());
    }
    Err(Failure::plain(format!(
        "sandbox {} could not be removed whole: {}",
        stopped.id,
        stopped.leftovers.join("; ")
    ))
    .hint(match is_left {
        true => "`nydusbox sweep` tries again",
        false => "the sandbox is gone, and nothing tries again: remove that by hand",
    }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_advised_only_where_there_is_something_to_sweep() {
        let stopped = Stopped {
            id: SandboxId::new("s1").unwrap(),
            step: "exited".to_owned(),
            unmount_failures: Vec::new(),
            leftovers: vec!["remove \"/share/c1/rootfs\": Directory not empty".to_owned()],
        };
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(Some(dir.path().to_owned())).unwrap();
        let hint = || {
            let failure = judge(&stopped, is_left(&state_dir, &stopped)).unwrap_err();
            failure.into_parts().1.unwrap()
        };
        assert!(hint().contains("by hand"));
        // Somebody else's file keeps it: a sweep leaves that alone.
        let kept = state_dir.sandbox(&stopped.id);
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("precious"), "").unwrap();
        assert!(hint().contains("by hand"));
        std::fs::write(kept.join(nydusbox::LOCK_FILE), "nydusbox sandbox\n1\n").unwrap();
        assert!(hint().contains("sweep"));
    }
}
