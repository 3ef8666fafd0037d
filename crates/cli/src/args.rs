//! The daemon's options, shared by `nydusbox virtiofs` and the `nydusd` personality.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args};
use nydusbox_protocol::{LogLevel, MountPoint, SocketPath};

/// Where a command's sandboxes are. An option of each command that has to do with sandboxes, and of none else.
#[derive(Debug, Clone, Args)]
pub(crate) struct StateDirArg {
    /// Directory with sockets and logs of the live sandboxes
    /// [default: /run/nydusbox for root, else $XDG_RUNTIME_DIR/nydusbox] [env: NYDUSBOX_STATE_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Options nydusd takes before or after its subcommand.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Socket of the HTTP API
    #[arg(short = 'A', long, value_name = "PATH", global = true)]
    pub(crate) apisock: Option<SocketPath>,
    /// Configuration of the initial RAFS mount, JSON or TOML
    #[arg(short = 'C', long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Identifier shown by the API
    #[arg(long, value_name = "ID", global = true)]
    pub(crate) id: Option<String>,
    /// Supervisor socket shown by the API
    #[arg(long, value_name = "PATH", global = true, requires = "id")]
    pub(crate) supervisor: Option<String>,
    /// How much to log: off, error, warn, info, debug or trace
    #[arg(
        short = 'l',
        long,
        value_name = "LEVEL",
        default_value = "info",
        global = true
    )]
    pub(crate) log_level: LogLevel,
    /// Append the log to a file instead of stderr (`.log` is added if it has no suffix)
    #[arg(short = 'L', long, value_name = "FILE", global = true)]
    pub(crate) log_file: Option<PathBuf>,
    /// Open files wanted; as many as permitted if that is fewer, 0 leaves the limit alone
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, global = true)]
    pub(crate) rlimit_nofile: u64,
}

/// Options of `virtiofs`.
#[derive(Debug, Args)]
pub(crate) struct VirtiofsArgs {
    /// Vhost-user socket for the VMM
    #[arg(long, value_name = "PATH", required_unless_present = "sock_fd")]
    pub(crate) sock: Option<SocketPath>,
    /// Listening vhost-user socket, handed down open under this descriptor number
    #[arg(long, value_name = "FD")]
    pub(crate) sock_fd: Option<i32>,
    /// Listening API socket, handed down open under this descriptor number
    #[arg(long, value_name = "FD")]
    pub(crate) apisock_fd: Option<i32>,
    /// Share this directory
    #[arg(short = 's', long, value_name = "DIR", conflicts_with = "bootstrap")]
    pub(crate) shared_dir: Option<PathBuf>,
    /// The guest can change nothing in the shared directory
    #[arg(long, action = ArgAction::SetTrue, requires = "shared_dir")]
    pub(crate) readonly: bool,
    /// Other names for extended attributes on the host than in the guest, in virtiofsd's syntax
    #[arg(long, value_name = "RULES", requires = "shared_dir")]
    pub(crate) xattrmap: Option<String>,
    /// Serve this RAFS image
    #[arg(short = 'B', long, value_name = "FILE")]
    pub(crate) bootstrap: Option<PathBuf>,
    /// Blobs of the image are in this directory (instead of --config)
    #[arg(
        short = 'D',
        long,
        value_name = "DIR",
        conflicts_with = "config",
        requires = "bootstrap"
    )]
    pub(crate) localfs_dir: Option<PathBuf>,
    /// Where to mount the directory or image in the guest's view
    #[arg(short = 'm', long, value_name = "PATH", default_value = "/")]
    pub(crate) virtual_mountpoint: MountPoint,
    /// File with one path of the image a line, to be fetched ahead
    #[arg(long, value_name = "FILE", requires = "bootstrap")]
    pub(crate) prefetch_files: Option<PathBuf>,
    /// Request queues offered to the VMM
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) request_queues: u16,
    /// Threads at the most, reached only while all others wait for slow blobs
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads_max: u16,
    /// End when standard input ends: the other end of that pipe is the supervisor's
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) exit_with_stdin: bool,
    /// Microseconds a thread looks for a busy guest's next request before it sleeps; 0 to sleep at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub(crate) poll_us: u16,
    /// Serve figures for Prometheus over TCP, too, as GET /metrics at this address (readable for whoever reaches it)
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Accepted for nydusd's sake: images and directories can always be mixed
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) hybrid_mode: bool,
}
