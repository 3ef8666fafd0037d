//! The caller's arguments against the options of a program: passed, translated or refused.
//!
//! Pure. virtiofsd's options reach a nydusd by way of configurations that were written for virtiofsd (Kata's default
//! has two); what they ask for either holds anyway, and they are left out, or cannot be had, and that is said before
//! anything runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nydusbox_protocol::{LogLevel, LogLevelError};

use super::help::Options;
use crate::program::ProgramKind;

/// Why an argument is not passed to the daemon. Values are not repeated here, only names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// The program has no such option.
    #[error("pass {argument} to the daemon: it{} has no such option, only {}", named(.version.as_deref()), list(.known))]
    Unknown {
        /// The option.
        argument: String,
        /// The version that the program says it is, if it does.
        version: Option<String>,
        /// The options it has, without dashes.
        known: Vec<String>,
    },
    /// What it asks for cannot be had from this program.
    #[error("pass {argument} to the daemon: {reason}; {instead}")]
    Unmet {
        /// The option.
        argument: String,
        /// Why not.
        reason: &'static str,
        /// What to write instead.
        instead: &'static str,
    },
    /// The supervisor passes this option itself, or does what it is for.
    #[error("pass {argument} to the daemon: the supervisor decides this; {instead}")]
    Owned {
        /// The option.
        argument: String,
        /// What to use instead.
        instead: &'static str,
    },
    /// The program refuses an option given twice.
    #[error("pass {argument} to the daemon twice: it takes it once; write it once")]
    Repeated {
        /// The option.
        argument: String,
    },
    /// Not an option, and no option before it takes it as its value.
    #[error("pass {argument:?} to the daemon: it is no option; write --name=value")]
    NotAnOption {
        /// The argument.
        argument: String,
    },
    /// The option needs a value and is the last argument.
    #[error("pass {argument} to the daemon: it needs a value; write {argument}=value")]
    NoValue {
        /// The option.
        argument: String,
    },
    /// The option is a switch.
    #[error("pass {argument} to the daemon: it takes no value; write {argument} alone")]
    UnexpectedValue {
        /// The option.
        argument: String,
    },
    /// A log level that is none.
    #[error("pass --log-level to the daemon")]
    LogLevel {
        /// What it should be.
        #[source]
        source: LogLevelError,
    },
}

fn named(version: Option<&str>) -> String {
    version.map_or_else(String::new, |version| format!(" ({version})"))
}

fn list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("--{n}")).collect();
    names.join(", ")
}

/// An argument that was not passed as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Translation {
    /// The option.
    pub(crate) argument: String,
    /// What became of it, and why that is right.
    pub(crate) reason: &'static str,
}

/// Arguments a program takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fitted {
    /// To be passed after the supervisor's own.
    pub(crate) args: Vec<OsString>,
    /// Takes the place of the configured level when the sandbox is started.
    pub(crate) log_level: Option<LogLevel>,
    /// The limit of open files is among `args`; the supervisor must not pass one.
    pub(crate) sets_nofile: bool,
    /// What was changed.
    pub(crate) translations: Vec<Translation>,
}

/// What is done with an option before the program's own list is asked.
enum Rule {
    Drop(&'static str),
    Refuse(&'static str, &'static str),
    Owned(&'static str),
    LogLevel,
    Nofile,
    Pass,
}

/// Fits arguments to a program.
pub(super) fn fit(kind: ProgramKind, args: &[OsString], knows: &Options) -> Result<Fitted, ArgumentError> {
    let mut fitted = Fitted::default();
    let mut seen: Vec<String> = Vec::new();
    let mut rest = args.iter();
    while let Some(argument) = rest.next() {
        let (name, attached) = option(argument, knows)?;
        let shown = format!("--{name}");
        let foreign = foreign_takes_value(&name);
        let takes_value = knows.takes_value(&name).or(foreign);
        let value = match (takes_value, attached) {
            (Some(true), Some(value)) => Some(value),
            (Some(true), None) => match rest.next() {
                Some(value) => Some(value.clone()),
                None => return Err(ArgumentError::NoValue { argument: shown }),
            },
            (Some(false), Some(_)) => return Err(ArgumentError::UnexpectedValue { argument: shown }),
            (Some(false), None) => None,
            (None, _) => {
                let known = knows.names().map(str::to_owned).collect();
                return Err(ArgumentError::Unknown {
                    argument: shown,
                    version: knows.version().map(str::to_owned),
                    known,
                });
            }
        };
        if seen.contains(&name) {
            return Err(ArgumentError::Repeated { argument: shown });
        }
        match rule(kind, &name, value.as_deref()) {
            Rule::Drop(reason) => fitted.translations.push(Translation {
                argument: shown,
                reason,
            }),
            Rule::Refuse(reason, instead) => {
                return Err(ArgumentError::Unmet {
                    argument: shown,
                    reason,
                    instead,
                });
            }
            Rule::Owned(instead) => {
                return Err(ArgumentError::Owned {
                    argument: shown,
                    instead,
                });
            }
            Rule::LogLevel => {
                let text = value.unwrap_or_default().to_string_lossy().into_owned();
                let level = text
                    .parse()
                    .map_err(|source| ArgumentError::LogLevel { source })?;
                fitted.log_level = Some(level);
                let reason = "taken for the configured level, which the daemon may be given once";
                fitted.translations.push(Translation {
                    argument: shown,
                    reason,
                });
            }
            rule @ (Rule::Nofile | Rule::Pass) => {
                fitted.sets_nofile |= matches!(rule, Rule::Nofile);
                fitted.args.push(shown.into());
                fitted.args.extend(value);
            }
        }
        seen.push(name);
    }
    Ok(fitted)
}

/// The long name of an option and a value attached to it: `--name`, `--name=value`, `-n`, `-nvalue`, `-n=value`.
fn option(argument: &OsStr, knows: &Options) -> Result<(String, Option<OsString>), ArgumentError> {
    let bytes = argument.as_bytes();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let no_option = || ArgumentError::NotAnOption {
        argument: argument.to_string_lossy().into_owned(),
    };
    if let Some(long) = bytes.strip_prefix(b"--") {
        let (name, value) = match long.iter().position(|&b| b == b'=') {
            Some(at) => (&long[..at], Some(owned(&long[at + 1..]))),
            None => (long, None),
        };
        return if name.is_empty() {
            Err(no_option())
        } else {
            Ok((text(name), value))
        };
    }
    let [b'-', short, attached @ ..] = bytes else {
        return Err(no_option());
    };
    let Some(name) = knows.long(char::from(*short)) else {
        let known = knows.names().map(str::to_owned).collect();
        let argument = format!("-{}", char::from(*short));
        let version = knows.version().map(str::to_owned);
        return Err(ArgumentError::Unknown {
            argument,
            version,
            known,
        });
    };
    let attached = attached.strip_prefix(b"=").unwrap_or(attached);
    Ok((name.to_owned(), Some(owned(attached)).filter(|v| !v.is_empty())))
}

/// Whether an option that only virtiofsd (or another mode of nydusd) has takes a value, so that the value is not
/// taken for an argument of its own.
fn foreign_takes_value(name: &str) -> Option<bool> {
    match name {
        "thread-pool-size" | "threads" | "thread-num" | "fuse-threads" | "cache" | "sandbox" | "seccomp"
        | "socket-path" | "fd" | "inode-file-handles" | "xattrmap" => Some(true),
        "announce-submounts"
        | "no-announce-submounts"
        | "xattr"
        | "syslog"
        | "writeback"
        | "hybrid-mode"
        | "readonly" => Some(false),
        _ => None,
    }
}

fn rule(kind: ProgramKind, name: &str, value: Option<&OsStr>) -> Rule {
    let value = value.and_then(OsStr::to_str).unwrap_or_default();
    match (name, kind) {
        ("log-level", _) => Rule::LogLevel,
        ("rlimit-nofile", _) => Rule::Nofile,
        ("sock" | "apisock" | "sock-fd" | "apisock-fd" | "socket-path" | "fd", _) => {
            Rule::Owned("leave it out, the sockets are in the sandbox's directory")
        }
        ("shared-dir", _) => Rule::Owned("configure a share, or mount one"),
        ("readonly" | "xattrmap", _) => Rule::Owned("configure the share; only our daemon can"),
        ("bootstrap" | "localfs-dir" | "config" | "prefetch-files" | "virtual-mountpoint", _) => {
            Rule::Owned("mount the image")
        }
        ("exit-with-stdin", _) => {
            Rule::Owned("configure what becomes of the daemon when the supervisor dies")
        }
        ("help" | "version", _) => Rule::Owned("leave it out, it would print and exit"),
        ("upgrade", ProgramKind::Stock) => {
            Rule::Refuse("it would wait for a takeover that never comes", "leave it out")
        }
        // Declared with clap's SetFalse: on unless it is given.
        ("hybrid-mode", ProgramKind::Stock) => Rule::Drop(
            "left out: images and directories can be mixed by default, and giving it turns that off",
        ),
        ("hybrid-mode", ProgramKind::Embedded) => {
            Rule::Drop("left out: images and directories can always be mixed")
        }
        ("thread-pool-size" | "threads" | "thread-num" | "fuse-threads", ProgramKind::Stock) => {
            Rule::Drop("left out: it has one worker thread over vhost-user, always")
        }
        ("thread-pool-size" | "threads" | "thread-num" | "fuse-threads", ProgramKind::Embedded) => {
            Rule::Drop("left out: the pool grows when all are busy; --threads-max bounds it")
        }
        ("announce-submounts" | "no-announce-submounts", ProgramKind::Stock) => {
            Rule::Drop("left out: mounts inside a share are shown as directories of it")
        }
        ("announce-submounts" | "no-announce-submounts", ProgramKind::Embedded) => {
            Rule::Drop("left out: mounts inside a share are announced to guests that know of them")
        }
        ("xattr", _) => Rule::Drop("left out: extended attributes are served"),
        ("syslog", _) => Rule::Drop("left out: what it prints is drained into the sandbox's log"),
        ("sandbox" | "seccomp", _) if value == "none" => Rule::Drop("left out: it has none"),
        ("sandbox" | "seccomp", _) => Rule::Refuse("it has none", "write none, or confine the supervisor"),
        ("cache", _) if value == "auto" => Rule::Drop("left out: that is what it does"),
        ("cache", _) => Rule::Refuse("its caching cannot be chosen", "write auto"),
        ("inode-file-handles", ProgramKind::Stock) if value == "never" => {
            Rule::Drop("left out: it uses none")
        }
        ("inode-file-handles", ProgramKind::Stock) => Rule::Refuse("it uses none", "write never"),
        ("inode-file-handles", ProgramKind::Embedded) if value == "mandatory" => {
            Rule::Refuse("it uses them once descriptors are short", "write prefer")
        }
        ("inode-file-handles", ProgramKind::Embedded) => {
            Rule::Drop("left out: it uses them once descriptors are short")
        }
        ("writeback", ProgramKind::Stock) => Rule::Drop("left out: that is what it does"),
        ("writeback", ProgramKind::Embedded) => {
            Rule::Refuse("the guest's and the host's writes would cross", "leave it out")
        }
        _ => Rule::Pass,
    }
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
