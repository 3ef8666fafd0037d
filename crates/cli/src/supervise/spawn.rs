//! The starting end: begins a supervisor that belongs to nobody, and waits for its word.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::handover::{ARRIVED, Reply, Task};
use crate::control::wire::SandboxInfo;
use crate::error::{Failure, INTERRUPTED};

/// How long a supervisor may take to undo what it has begun, unless it is asked for the second time.
const UNDOES_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of a supervisor may take that has closed its socket.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What a supervisor has become.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It owns the sandbox.
    Serving(Box<SandboxInfo>),
    /// It has removed what was left of one, but for these, and has ended.
    CleanedUp(Vec<String>),
}

/// Begins a supervisor and waits until the share is served. Ctrl-C and SIGTERM undo a start. They never end a sandbox
/// that was there before: it is left as it was, or adopted all the same if it was too late.
pub(crate) async fn begin(task: &Task) -> Result<Begun, Failure> {
    let failed = |e: io::Error| Failure::new("start a supervisor", &e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (child, stream) = spawn(task).map_err(failed)?;
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let mut line = serde_json::to_string(task).map_err(|e| Failure::new("write the task", &e))?;
    line.push('\n');
    // A supervisor that is gone already shows in the answer that does not come.
    let _ = writing.write_all(line.as_bytes()).await;
    let mut answer = String::new();
    let interrupted = tokio::select! {
        biased;
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
        _ = reading.read_line(&mut answer) => false,
    };
    if interrupted {
        let _ = writing.shutdown().await;
        let undone = async {
            // What there still is to be read is the reply of a supervisor that has done its work already.
            let _ = reading.read_line(&mut answer).await;
            hung_up(reading).await;
        };
        let is_undone = tokio::select! {
            () = undone => true,
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            () = sleep(UNDOES_WITHIN) => false,
        };
        let id = task.id();
        let (task, what) = match (task, serde_json::from_str(&answer)) {
            (Task::Adopt { .. }, Ok(Reply::Serving(info))) => return Ok(Begun::Serving(info)),
            (Task::Adopt { .. }, _) => (
                format!("adopting sandbox {id} was interrupted"),
                "; it is as it was",
            ),
            (Task::Start(_), _) => (format!("the start of sandbox {id} was interrupted"), ""),
        };
        return Err(match is_undone {
            true => Failure::plain(task + what),
            false => Failure::plain(task).hint(format!(
                "its supervisor (process {}) does not end yet; it undoes what it has begun",
                child.id()
            )),
        }
        .code(INTERRUPTED));
    }
    match serde_json::from_str(&answer) {
        Ok(Reply::Serving(info)) => {
            writing
                .write_all(&[ARRIVED])
                .await
                .map_err(|e| Failure::new("tell the supervisor that it is on its own", &e))?;
            Ok(Begun::Serving(info))
        }
        Ok(Reply::CleanedUp(leftovers)) => {
            hung_up(reading).await;
            Ok(Begun::CleanedUp(leftovers))
        }
        Ok(Reply::Failed(error)) => {
            hung_up(reading).await;
            Err(error.into())
        }
        Err(_) => {
            let status = ended(child).await.unwrap_or_default();
            Err(
                Failure::plain(format!("the supervisor of sandbox {} ended{status}", task.id()))
                    .hint("`nydusbox sweep` removes what it may have left"),
            )
        }
    }
}

/// In the root directory, without a terminal, and with the handover as its only descriptor. It leaves this
/// process' session by itself, first of all.
fn spawn(task: &Task) -> io::Result<(Child, UnixStream)> {
    // Whatever we were given open besides the standard streams would stay open as long as the sandbox lives.
    nydusbox_fsd::sys::inherit_no_further()?;
    let (ours, theirs) = StdStream::pair()?;
    let child = Command::new(std::env::current_exe()?)
        .args(["supervise", task.id().as_str(), "--state-dir"])
        .arg(task.state_dir())
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    ours.set_nonblocking(true)?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// Waits until a supervisor closes its end, which it does when everything is undone. It may still have spans to send.
async fn hung_up(mut reading: BufReader<OwnedReadHalf>) {
    let _ = reading.read_to_end(&mut Vec::new()).await;
}

/// Waits for the end of a supervisor that has closed its socket, and says how it ended unless that was in order.
async fn ended(mut child: Child) -> Option<String> {
    let (tell, told) = oneshot::channel();
    // A runtime waits for its own threads at its end, and a process that a file system does not let go may never end.
    std::thread::spawn(move || drop(tell.send(child.wait())));
    let status = timeout(ENDS_WITHIN, told).await.ok()?.ok()?.ok()?;
    Some(format!(" ({status})"))
}
