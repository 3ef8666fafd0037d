//! What is run in the guest: what the image's configuration says, unless the command line says otherwise.
//!
//! Pure. The rules are Docker's: a command replaces the image's `Cmd` and is given to its `Entrypoint`; another
//! entrypoint drops both.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use nydusbox_image::source::ImageConfiguration;
use nydusbox_rootfs::{GuestPath, GuestPathError};
use nydusbox_vmm::{ContainerUser, ContainerUserError, DEFAULT_PATH};
use thiserror::Error;

/// What the command line says of the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides {
    /// Instead of the image's entrypoint; an empty one is none.
    pub(super) entrypoint: Option<OsString>,
    pub(super) command: Vec<OsString>,
    pub(super) user: Option<ContainerUser>,
    /// Variables that are added, or replace those of the image.
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) workdir: Option<GuestPath>,
}

/// A process of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) command: Vec<OsString>,
    /// Besides what every process has; each name once.
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) user: ContainerUser,
    pub(super) workdir: GuestPath,
}

/// Why there is nothing to run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum ProcessError {
    #[error("the image says no command, and none was given")]
    NoCommand,
    #[error("the image's user cannot be used")]
    User(#[source] ContainerUserError),
    #[error("the image's working directory cannot be used")]
    Workdir(#[source] GuestPathError),
}

impl Process {
    /// What `overrides` make of what the image says.
    pub(super) fn new(image: &ImageConfiguration, overrides: Overrides) -> Result<Self, ProcessError> {
        let image = image.config().as_ref();
        let words = |list: Option<&Vec<String>>| -> Vec<OsString> {
            list.into_iter().flatten().map(OsString::from).collect()
        };
        let entrypoint = match overrides.entrypoint {
            Some(program) => Some(program).into_iter().filter(|p| !p.is_empty()).collect(),
            None if overrides.command.is_empty() => {
                let mut whole = words(image.and_then(|c| c.entrypoint().as_ref()));
                whole.extend(words(image.and_then(|c| c.cmd().as_ref())));
                whole
            }
            None => words(image.and_then(|c| c.entrypoint().as_ref())),
        };
        let command: Vec<_> = entrypoint.into_iter().chain(overrides.command).collect();
        if command.is_empty() {
            return Err(ProcessError::NoCommand);
        }
        let mut env = Vec::new();
        let of_image = image.and_then(|c| c.env().as_ref()).into_iter().flatten();
        // What has no name or no value is no variable; Docker leaves it out, too.
        let of_image = of_image.filter_map(|pair| pair.split_once('=').filter(|(name, _)| !name.is_empty()));
        let of_image = of_image.map(|(name, value)| (name.into(), value.into()));
        for (name, value) in of_image.chain(overrides.env) {
            env.retain(|(known, _)| *known != name);
            env.push((name, value));
        }
        let user = match overrides.user {
            Some(user) => user,
            None => {
                let text = image.and_then(|c| c.user().as_deref()).unwrap_or_default();
                ContainerUser::new(text).map_err(ProcessError::User)?
            }
        };
        let workdir = match overrides.workdir {
            Some(dir) => dir,
            None => {
                let text = image.and_then(|c| c.working_dir().as_deref()).unwrap_or_default();
                GuestPath::new(cleaned(text)).map_err(ProcessError::Workdir)?
            }
        };
        Ok(Self {
            command,
            env,
            user,
            workdir,
        })
    }

    /// Where the program may be, in the order in which the guest looks for it, as far as these are names in UTF-8.
    pub(super) fn programs(&self) -> Vec<String> {
        let Some(program) = self.command.first() else {
            return Vec::new();
        };
        let workdir = Path::new(self.workdir.as_str());
        let paths = if program.as_encoded_bytes().contains(&b'/') {
            vec![workdir.join(program)]
        } else {
            let path = self.env.iter().rfind(|(name, _)| name == "PATH");
            let path = path.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
            let dirs = std::env::split_paths(path);
            dirs.map(|dir| workdir.join(dir).join(program)).collect()
        };
        paths
            .into_iter()
            .filter_map(|path| path.into_os_string().into_string().ok())
            .collect()
    }
}

/// A path of an image as runtimes take it: by its text, whatever is a link there. It is below the root, since there is
/// nothing else that it could be relative to, and `..` leads no higher.
fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image(config: &Value) -> ImageConfiguration {
        let image = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        serde_json::from_value(image).unwrap()
    }

    fn process(config: &Value, overrides: Overrides) -> Process {
        Process::new(&image(config), overrides).unwrap()
    }

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    type Words = &'static [&'static str];

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let (e, c) = (json!(["/init", "-x"]), json!(["serve", "all"]));
        let both = json!({ "Entrypoint": e, "Cmd": c });
        let only_entry = json!({ "Entrypoint": e });
        let only_cmd = json!({ "Cmd": c });
        let neither = json!({});
        let cases: [(&Value, Option<&str>, Words, Words); 12] = [
            (&both, None, &[], &["/init", "-x", "serve", "all"]),
            (&both, None, &["ls"], &["/init", "-x", "ls"]),
            (&both, Some("/bin/sh"), &[], &["/bin/sh"]),
            (&both, Some("/bin/sh"), &["-c", "ls"], &["/bin/sh", "-c", "ls"]),
            (&both, Some(""), &["ls"], &["ls"]),
            (&both, Some(""), &[], &[]),
            (&only_entry, None, &[], &["/init", "-x"]),
            (&only_entry, None, &["ls"], &["/init", "-x", "ls"]),
            (&only_cmd, None, &[], &["serve", "all"]),
            (&only_cmd, None, &["ls", "-l"], &["ls", "-l"]),
            (&only_cmd, Some("/bin/sh"), &[], &["/bin/sh"]),
            (&neither, None, &[], &[]),
        ];
        for (config, entrypoint, command, expected) in cases {
            let overrides = Overrides {
                entrypoint: entrypoint.map(Into::into),
                command: os(command),
                ..Overrides::default()
            };
            let found = Process::new(&image(config), overrides).map(|process| process.command);
            let expected = match expected {
                [] => Err(ProcessError::NoCommand),
                words => Ok(os(words)),
            };
            assert_eq!(found, expected, "{config} {entrypoint:?} {command:?}");
        }
    }

    #[test]
    fn an_image_without_a_configuration_runs_what_it_is_told() {
        let overrides = Overrides {
            command: os(&["ls"]),
            ..Overrides::default()
        };
        let process = Process::new(&ImageConfiguration::default(), overrides).unwrap();
        assert_eq!(process.command, os(&["ls"]));
        assert_eq!(
            (process.user, process.workdir.as_str()),
            (ContainerUser::default(), "/")
        );
    }

    #[test]
    fn variables_of_the_image_are_replaced_by_name() {
        let config = json!({ "Cmd": ["x"], "Env": ["A=1", "B=2=3", "no-value", "=x", "A=4", "C="] });
        let overrides = Overrides {
            env: vec![("B".into(), "5".into()), ("D".into(), "6".into())],
            ..Overrides::default()
        };
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        assert_eq!(
            process(&config, overrides).env,
            [pair("A", "4"), pair("C", ""), pair("B", "5"), pair("D", "6")]
        );
    }

    #[test]
    fn user_and_directory_are_the_images_unless_others_are_given() {
        let config = json!({ "Cmd": ["x"], "User": "app:staff", "WorkingDir": "srv//data/" });
        let of_image = process(&config, Overrides::default());
        assert_eq!(of_image.user, "app:staff".parse().unwrap());
        assert_eq!(of_image.workdir.as_str(), "/srv/data");
        let overrides = Overrides {
            user: Some("7".parse().unwrap()),
            workdir: Some(GuestPath::new("/tmp").unwrap()),
            ..Overrides::default()
        };
        let given = process(&config, overrides);
        assert_eq!(
            (given.user, given.workdir.as_str()),
            ("7".parse().unwrap(), "/tmp")
        );
    }

    #[test]
    fn an_images_directory_is_taken_by_its_text() {
        for (said, meant) in [
            ("", "/"),
            ("/app/.", "/app"),
            ("./app//sub/..", "/app"),
            ("/app/../../srv/./www/", "/srv/www"),
            ("/..", "/"),
            ("/app/...", "/app/..."),
        ] {
            let config = json!({ "Cmd": ["x"], "WorkingDir": said });
            let workdir = process(&config, Overrides::default()).workdir;
            assert_eq!(workdir.as_str(), meant, "{said}");
        }
    }

    #[test]
    fn a_program_is_looked_for_where_the_guest_looks() {
        let programs = |config: &Value| process(config, Overrides::default()).programs();
        assert_eq!(programs(&json!({ "Cmd": ["/bin/x"] })), ["/bin/x"]);
        let unset = [
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ];
        assert_eq!(
            programs(&json!({ "Cmd": ["x"] })),
            unset.map(|dir| format!("{dir}/x"))
        );
        let here = json!({ "Cmd": ["./x"], "WorkingDir": "/srv" });
        assert_eq!(programs(&here), ["/srv/./x"]);
        let path = json!({ "Cmd": ["x"], "WorkingDir": "/srv", "Env": ["PATH=/opt/bin:tools::/bin"] });
        assert_eq!(
            programs(&path),
            ["/opt/bin/x", "/srv/tools/x", "/srv/x", "/bin/x"]
        );
    }

    #[test]
    fn what_an_image_says_wrongly_can_be_overridden() {
        let config = json!({ "Cmd": ["x"], "User": "a:b:c", "WorkingDir": "/a\nb" });
        let user = || Some("0".parse().unwrap());
        let error = |overrides| Process::new(&image(&config), overrides).unwrap_err();
        assert!(matches!(error(Overrides::default()), ProcessError::User(_)));
        let with_user = Overrides {
            user: user(),
            ..Overrides::default()
        };
        assert!(matches!(error(with_user), ProcessError::Workdir(_)));
        let with_both = Overrides {
            user: user(),
            workdir: Some(GuestPath::new("/").unwrap()),
            ..Overrides::default()
        };
        assert!(Process::new(&image(&config), with_both).is_ok());
    }
}
