//! The daemon's command line: what is passed to which program, as a value.
//!
//! Pure. It never opens, binds or starts anything; [`crate::launch`] does.

use std::ffi::{OsStr, OsString};

use nydusbox_protocol::LogLevel;

use crate::config::SandboxConfig;
use crate::environment::OnSupervisorDeath;
use crate::preflight::Fitted;
use crate::program::{Program, ProgramKind};

/// Descriptor the embedded daemon finds the listening vhost-user socket at.
pub(crate) const VHOST_FD: i32 = 3;
/// Descriptor the embedded daemon finds the listening API socket at.
pub(crate) const API_FD: i32 = 4;

/// nydusd raises its limit of open files to this and exits when it may not.
const NYDUSD_RLIMIT_NOFILE: u64 = 1_000_000;

/// The arguments for the configured program. `extra` are the caller's; `nofile_hard` is this process' hard limit of
/// open files, `None` for no limit.
pub(crate) fn arguments(config: &SandboxConfig, extra: &Fitted, nofile_hard: Option<u64>) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["virtiofs".into()];
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    option("--sock", config.vhost_socket().as_path().into());
    option("--apisock", config.api_socket().as_path().into());
    option(
        "--log-level",
        log_level(config.program().kind(), config.log_level()).into(),
    );
    let bounded = config.environment().limits.bounds_open_files();
    match config.program().kind() {
        ProgramKind::Embedded => {
            option("--sock-fd", VHOST_FD.to_string().into());
            option("--apisock-fd", API_FD.to_string().into());
            // Figures of several daemons are told apart by it.
            if !extra.args.iter().any(|arg| arg == "--id") {
                option("--id", config.id().as_str().into());
            }
            // It raises the limit as far as it may unless it is told not to.
            if bounded && !extra.sets_nofile {
                option("--rlimit-nofile", "0".into());
            }
            match config.environment().on_supervisor_death {
                OnSupervisorDeath::Kill => args.push("--exit-with-stdin".into()),
                OnSupervisorDeath::Spare => {}
            }
        }
        ProgramKind::Stock => {
            // Raising the hard limit needs CAP_SYS_RESOURCE, which containers commonly lack even as root; a
            // lower limit that works is better than a daemon that does not start.
            let too_low = nofile_hard.is_some_and(|hard| hard < NYDUSD_RLIMIT_NOFILE);
            if (too_low || bounded) && !extra.sets_nofile {
                option("--rlimit-nofile", "0".into());
            }
        }
    }
    args.extend_from_slice(&extra.args);
    args
}

/// What glibc keeps for the embedded daemon. Its threads each keeping what they free, and a heap of their own, and their
/// stacks being kept when they are gone, would cost more than all it has in use, and grow with every mount until all of
/// them have had one.
const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0:glibc.pthread.stack_cache_size=0",
);

/// What the program finds in its environment besides what the caller gives it, and what this process has.
/// `is_set` says of a variable whether this process has it.
pub(crate) fn environment(
    program: &Program,
    is_set: impl Fn(&OsStr) -> bool,
) -> Option<(&'static str, &'static str)> {
    let theirs = is_set(ALLOCATOR.0.as_ref()) || program.env().any(|(name, _)| name == ALLOCATOR.0);
    match program.kind() {
        ProgramKind::Embedded if !theirs => Some(ALLOCATOR),
        ProgramKind::Embedded | ProgramKind::Stock => None,
    }
}

/// A stock nydusd has no level `off`.
fn log_level(kind: ProgramKind, level: LogLevel) -> &'static str {
    match (kind, level) {
        (ProgramKind::Stock, LogLevel::Off) => LogLevel::Error.as_str(),
        (ProgramKind::Stock | ProgramKind::Embedded, level) => level.as_str(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use nydusbox_protocol::SandboxId;

    fn line(program: Program, extra: &Fitted, nofile: Option<u64>, level: LogLevel) -> String {
        let config = SandboxConfig::new(SandboxId::new("s1").unwrap(), "/run/nb", program)
            .unwrap()
            .with_log_level(level);
        let args = arguments(&config, extra, nofile);
        args.iter()
            .map(|a| a.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn an_embedded_daemon_is_told_its_descriptors() {
        assert_eq!(
            line(
                Program::embedded("/bin/sh").unwrap(),
                &Fitted::default(),
                Some(1024),
                LogLevel::Off
            ),
            "virtiofs --sock /run/nb/s1/vhost.sock --apisock /run/nb/s1/api.sock --log-level off \
             --sock-fd 3 --apisock-fd 4 --id s1 --exit-with-stdin"
        );
    }

    #[test]
    fn the_embedded_daemons_allocator_is_the_callers_to_tune_first() {
        let embedded = || Program::embedded("/bin/sh").unwrap();
        let set = |program: &Program, inherited| environment(program, |_| inherited).map(|(name, _)| name);
        assert_eq!(set(&embedded(), false), Some("GLIBC_TUNABLES"));
        assert_eq!(set(&embedded(), true), None);
        assert_eq!(set(&embedded().with_env("GLIBC_TUNABLES", ""), false), None);
        assert_eq!(set(&Program::stock("/bin/sh").unwrap(), false), None);
    }

    #[test]
    fn a_stock_daemon_gets_only_what_it_knows() {
        let stock = |nofile| {
            let none = Fitted::default();
            line(Program::stock("/bin/sh").unwrap(), &none, nofile, LogLevel::Off)
        };
        let plain = "virtiofs --sock /run/nb/s1/vhost.sock --apisock /run/nb/s1/api.sock --log-level error";
        assert_eq!(stock(None), plain);
        assert_eq!(stock(Some(1_000_000)), plain);
        assert_eq!(stock(Some(999_999)), format!("{plain} --rlimit-nofile 0"));
    }

    #[test]
    fn the_callers_arguments_come_last_and_decide_the_limit() {
        let extra = Fitted {
            args: vec!["--rlimit-nofile".into(), "4096".into()],
            log_level: None,
            sets_nofile: true,
            translations: Vec::new(),
        };
        let program = Program::stock("/bin/sh").unwrap();
        let line = line(program, &extra, Some(1024), LogLevel::Info);
        assert!(line.ends_with("--log-level info --rlimit-nofile 4096"), "{line}");
    }
}
