//! Fuzzes the parsers of what others hand us, by libFuzzer, each for a while.
//!
//! Coverage comes from LLVM's own pass, which the stable compiler can be told to run; so neither a nightly compiler nor
//! cargo-fuzz is needed. What a run has found out about the code is kept below `target/fuzz/corpus` for the next.

use crate::command::Cmd;
use crate::error::TaskError;
use crate::workspace::{Workspace, make_dir};

const TARGETS: [&str; 13] = [
    "extra_option",
    "virtual_volume",
    "rootfs_mount",
    "overlay_options",
    "state_document",
    "bootstrap",
    "mount",
    "program",
    "layer",
    "blob",
    "archive",
    "documents",
    "registry_texts",
];

/// What cargo-fuzz passes, less the sanitizers: safe code has nothing for them to find.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg=fuzzing";

/// What a target may take at once, in bytes of address space. Memory that is asked for and never touched shows nowhere
/// else; nydus' builder has a stack of 256 MiB.
const ADDRESS_SPACE: &str = "--as=2147483648";

#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Targets to fuzz; all unless given
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// How long to fuzz each
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(workspace: &Workspace, args: FuzzArgs) -> Result<(), TaskError> {
    let targets = if args.targets.is_empty() {
        TARGETS.map(str::to_owned).to_vec()
    } else {
        args.targets
    };
    // With a target named, cargo keeps these flags from build scripts and macros, which have no fuzzer in them.
    let host = host()?;
    let fuzz = workspace.fuzz();
    Cmd::cargo()
        .words("build --release --locked --package nydusbox-fuzz --features libfuzzer --bins --target")
        .arg(&host)
        .arg("--target-dir")
        .arg(&fuzz)
        .env("RUSTFLAGS", RUSTFLAGS)
        .dir(workspace.root())
        .shown()?;
    for target in targets {
        let corpus = fuzz.join("corpus").join(&target);
        let found = fuzz.join("found").join(&target);
        make_dir(&corpus)?;
        make_dir(&found)?;
        Cmd::new("prlimit")
            .arg(ADDRESS_SPACE)
            .arg(fuzz.join(&host).join("release").join(&target))
            .arg(&corpus)
            .arg(workspace.root().join("fuzz/seeds").join(&target))
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .words("-timeout=10 -rss_limit_mb=512 -max_len=65536 -verbosity=0 -print_final_stats=1")
            .shown_as(&format!("fuzzing {target} for {} s", args.seconds))?;
    }
    Ok(())
}

/// The compiler's own target, as it names it.
fn host() -> Result<String, TaskError> {
    let version = Cmd::new("rustc").arg("-vV").output()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or(TaskError::NoHost)
}
