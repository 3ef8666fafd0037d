//! `nydusbox virtiofs`: the embedded daemon in the foreground until SIGTERM, SIGINT or `/daemon/exit`.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nydusbox_fsd::{
    Daemon, DaemonConfig, InitialMount, NofileOutcome, SocketSource, WorkerLimits, outlive_truncation,
    raise_nofile, sys,
};
use nydusbox_protocol::{BuildVersion, MountCommand, ShareConfig, SocketPath};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{GlobalArgs, VirtiofsArgs};
use crate::error::{FAILED, Failure};
use crate::{logging, signals};

#[expect(
    clippy::needless_pass_by_value,
    reason = "every command takes its arguments by value"
)]
pub(crate) fn main(global: GlobalArgs, args: VirtiofsArgs) -> ExitCode {
    match run(global, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(FAILED),
    }
}

fn run(global: GlobalArgs, args: &VirtiofsArgs) -> Result<(), Failure> {
    // First of all, while no other descriptor can be mistaken for one that was handed down.
    let vhost_socket = socket("vhost-user", args.sock.clone(), args.sock_fd)?
        .ok_or_else(|| Failure::plain("no vhost-user socket is given"))?;
    let api_socket = socket("API", global.apisock.clone(), args.apisock_fd)?;
    if args.exit_with_stdin {
        end_with_stdin()?;
    }
    let log = logging::start(global.log_level, global.log_file.as_deref())?;
    if let NofileOutcome::Short { wanted, now } = raise_nofile(global.rlimit_nofile) {
        tracing::warn!(
            wanted,
            now,
            "the limit of open files could not be raised as far as asked for"
        );
    }
    if let Err(error) = outlive_truncation() {
        tracing::warn!(%error, "files that are truncated while they are mapped will end the daemon");
    }
    if let Err(error) = signals::outlive_file_limit() {
        tracing::warn!(%error, "what is written beyond the limit of file sizes will end the daemon");
    }
    let initial_mount = initial_mount(&global, args)?;
    let config = DaemonConfig {
        vhost_socket,
        api_socket,
        metrics_addr: args.metrics_addr,
        initial_mount,
        request_queues: usize::from(args.request_queues),
        workers: WorkerLimits {
            base: 0,
            max: usize::from(args.threads_max),
            poll: Duration::from_micros(args.poll_us.into()),
        },
        id: global.id,
        supervisor: global.supervisor,
        version: build_version(),
        log,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new("start the API's runtime", &e))?;
    let result = runtime.block_on(serve(config));
    // A mount that is still being made is not waited for.
    runtime.shutdown_background();
    result
}

/// Whoever started this daemon holds the other end of the pipe, and is gone when it ends. Nothing is orderly then:
/// a thread of its own and SIGKILL, so that no request that hangs can be in the way.
fn end_with_stdin() -> Result<(), Failure> {
    let watch = || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(watch)
        .map(drop)
        .map_err(|e| Failure::new("watch standard input", &e))
}

async fn serve(config: DaemonConfig) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new("watch for signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let daemon = Daemon::start(config).map_err(|e| Failure::new("start the daemon", &e))?;
    tracing::info!("serving");
    let why = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = daemon.exit_requested() => "the API",
    };
    tracing::info!(asked_by = why, "stopping");
    daemon.stop().await;
    Ok(())
}

fn socket(what: &str, path: Option<SocketPath>, fd: Option<i32>) -> Result<Option<SocketSource>, Failure> {
    match (fd, path) {
        (Some(fd), _) => sys::adopt_listening_socket(fd)
            .map(|fd| Some(SocketSource::Inherited(fd)))
            .map_err(|e| Failure::new(&format!("use descriptor {fd} as the {what} socket"), &e)),
        (None, Some(path)) => Ok(Some(SocketSource::Bind(path))),
        (None, None) => Ok(None),
    }
}

fn initial_mount(global: &GlobalArgs, args: &VirtiofsArgs) -> Result<Option<InitialMount>, Failure> {
    let command = match (&args.shared_dir, &args.bootstrap) {
        (Some(dir), _) => MountCommand::passthrough(utf8(dir)?).with_share_config(&ShareConfig {
            read_only: args.readonly,
            xattrmap: args.xattrmap.clone(),
        }),
        (None, Some(bootstrap)) => {
            let config = match (&global.config, &args.localfs_dir) {
                (Some(file), _) => read(file, "configuration")?,
                (None, Some(dir)) => localfs_config(dir)?,
                (None, None) => {
                    return Err(Failure::plain(
                        "--bootstrap needs --config or --localfs-dir to find the image's blobs",
                    ));
                }
            };
            let mut command = MountCommand::rafs(utf8(bootstrap)?, config);
            if let Some(file) = &args.prefetch_files {
                let list = read(file, "prefetch list")?;
                command.prefetch_files = Some(
                    list.lines()
                        .map(str::trim)
                        .filter(|l| !l.is_empty())
                        .map(String::from)
                        .collect(),
                );
            }
            command
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(InitialMount {
        mount_point: args.virtual_mountpoint.clone(),
        command,
    }))
}

/// What nydusd makes of `--localfs-dir`: blobs and cache in the same directory.
fn localfs_config(dir: &Path) -> Result<String, Failure> {
    let dir = utf8(dir)?;
    Ok(serde_json::json!({
        "version": 2,
        "id": "localfs",
        "backend": {"type": "localfs", "localfs": {"dir": dir}},
        "cache": {"type": "filecache", "filecache": {"work_dir": dir}},
        "rafs": {"mode": "direct", "enable_xattr": true, "prefetch": {"enable": false}}
    })
    .to_string())
}

fn read(file: &Path, what: &str) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|e| Failure::new(&format!("read the {what} {}", file.display()), &e))
}

fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::plain(format!(
            "the path {} is not UTF-8, which the API requires",
            path.display()
        ))
    })
}

fn build_version() -> BuildVersion {
    let unknown = || "unknown".to_owned();
    BuildVersion {
        package_ver: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: unknown(),
        build_time: unknown(),
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        }
        .to_owned(),
        rustc: unknown(),
    }
}
