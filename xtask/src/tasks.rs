//! The tasks, by name.

mod bench;
mod chaos;
pub(crate) mod check_deps;
mod demo;
mod fuzz;
pub(crate) mod guest;
pub(crate) mod peers;
mod test;

use clap::Subcommand;

use crate::error::TaskError;
use crate::workspace::Workspace;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Boot a Debian userland in a microVM on an image that is fetched as it is read
    Demo,
    /// Measure against the genuine peers
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The gate: formatting, lints, documentation, then every test with all its peers
    Test {
        /// Run long tests at full length, and on the peers too
        #[arg(long)]
        full: bool,
    },
    /// Fuzz the parsers of what others hand us, each for a while
    Fuzz(fuzz::FuzzArgs),
    /// Read a cold image while its backend, its cache and its daemons fail, and compare every byte
    Chaos(chaos::ChaosArgs),
    /// Install the genuine nydusd and virtiofsd, and suites of tests, below target/peers, once
    Peers,
    /// Unpack the microVM's kernel and busybox below target/guest, once
    Guest,
    /// Check which crate may depend on which
    CheckDeps,
}

impl Task {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<(), TaskError> {
        match self {
            Self::Demo => demo::run(workspace),
            Self::Bench(bench) => bench::run(workspace, &bench),
            Self::Test { full } => test::run(workspace, full),
            Self::Fuzz(args) => fuzz::run(workspace, args),
            Self::Chaos(args) => chaos::run(workspace, &args),
            Self::Peers => peers::ensure(workspace).map(drop),
            Self::Guest => guest::ensure(workspace).map(drop),
            Self::CheckDeps => check_deps::run(workspace),
        }
    }
}
