//! The options a program has, read from the help text clap prints.
//!
//! Pure. It looks at the option column only, never at descriptions.

use std::collections::BTreeMap;

/// Options of `nydusbox virtiofs`, with the short name and whether a value follows. A test of the command compares
/// them with its own help.
const EMBEDDED: &[(&str, Option<char>, bool)] = &[
    ("apisock", Some('A'), true),
    ("config", Some('C'), true),
    ("id", None, true),
    ("supervisor", None, true),
    ("log-level", Some('l'), true),
    ("log-file", Some('L'), true),
    ("rlimit-nofile", None, true),
    ("sock", None, true),
    ("sock-fd", None, true),
    ("apisock-fd", None, true),
    ("shared-dir", Some('s'), true),
    ("readonly", None, false),
    ("xattrmap", None, true),
    ("bootstrap", Some('B'), true),
    ("localfs-dir", Some('D'), true),
    ("virtual-mountpoint", Some('m'), true),
    ("prefetch-files", None, true),
    ("request-queues", None, true),
    ("threads-max", None, true),
    ("exit-with-stdin", None, false),
    ("poll-us", None, true),
    ("metrics-addr", None, true),
    ("hybrid-mode", None, false),
    ("help", Some('h'), false),
];

/// The options of one program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Options {
    /// Whether a value follows, by long name.
    longs: BTreeMap<String, bool>,
    shorts: BTreeMap<char, String>,
    /// What the program says its version is, if it knows.
    version: Option<String>,
}

/// A version is not longer, in characters.
const VERSION_LONGEST: usize = 64;

impl Options {
    /// Those of the embedded daemon.
    pub(super) fn embedded() -> Self {
        let mut options = Self::default();
        for &(long, short, takes_value) in EMBEDDED {
            options.add(long, short, takes_value);
        }
        options
    }

    /// Reads the option column of a help text: `-A, --apisock <apisock>`, with or without a description behind it.
    pub(super) fn parse(help: &str) -> Self {
        let mut options = Self::default();
        for line in help.lines() {
            let line = line.trim_start();
            if !line.starts_with('-') {
                continue;
            }
            let column = line.split("  ").next().unwrap_or(line);
            let (mut long, mut short) = (None, None);
            for piece in column.split(", ") {
                let name = piece.split([' ', '=', '[']).next().unwrap_or(piece);
                if let Some(name) = name.strip_prefix("--") {
                    long = Some(name);
                } else if let Some(name) = name.strip_prefix('-') {
                    short = name.chars().next();
                }
            }
            if let Some(long) = long.filter(|l| !l.is_empty()) {
                options.add(long, short, column.contains('<'));
            }
        }
        options
    }

    /// The same of a program that prints this when it is asked for its version: nydusd a list with `Version:` in it,
    /// which is `unknown` where it was built outside its repository, others a line.
    pub(super) fn of_version(mut self, text: &str) -> Self {
        let mut lines = text.split(['\n', '\r']).map(str::trim);
        let labelled = lines.clone().find_map(|line| line.strip_prefix("Version:"));
        let version = labelled.or_else(|| lines.find(|line| !line.is_empty()));
        let shown = version.map(|version| {
            let shown = version.trim().chars().filter(|c| !c.is_control());
            shown.take(VERSION_LONGEST).collect::<String>()
        });
        self.version = shown.filter(|version| version != "unknown");
        self
    }

    /// The program's version, if it says so.
    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn add(&mut self, long: &str, short: Option<char>, takes_value: bool) {
        self.longs.insert(long.to_owned(), takes_value);
        if let Some(short) = short {
            self.shorts.insert(short, long.to_owned());
        }
    }

    /// Whether a value follows this option; `None` when there is no such option.
    pub(super) fn takes_value(&self, long: &str) -> Option<bool> {
        self.longs.get(long).copied()
    }

    /// The long name of a short one.
    pub(super) fn long(&self, short: char) -> Option<&str> {
        self.shorts.get(&short).map(String::as_str)
    }

    /// Every long name, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.longs.keys().map(String::as_str)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_what_a_program_says_it_is() {
        for (text, version) in [
            ("nydusd \rVersion: \tv2.2.0\nGit Commit: \t0123\n", Some("v2.2.0")),
            ("nydusd \rVersion: \tunknown\nGit Commit: \tunknown\n", None),
            ("nydusbox 0.1.0\n", Some("nydusbox 0.1.0")),
            ("", None),
        ] {
            assert_eq!(Options::default().of_version(text).version(), version, "{text:?}");
        }
    }

    const NYDUSD: &str = include_str!("nydusd-2.2.0-virtiofs-help.txt");

    #[test]
    fn every_option_of_a_genuine_nydusd_is_found() {
        let options = Options::parse(NYDUSD);
        let names: Vec<&str> = options.names().collect();
        assert_eq!(
            names,
            [
                "apisock",
                "bootstrap",
                "config",
                "help",
                "hybrid-mode",
                "id",
                "localfs-dir",
                "log-file",
                "log-level",
                "log-rotation-size",
                "prefetch-files",
                "rlimit-nofile",
                "shared-dir",
                "sock",
                "supervisor",
                "upgrade",
                "virtual-mountpoint",
            ]
        );
        assert_eq!(options.takes_value("sock"), Some(true));
        assert_eq!(options.takes_value("upgrade"), Some(false));
        assert_eq!(options.takes_value("thread-pool-size"), None);
        assert_eq!(options.long('L').unwrap(), "log-file");
    }

    #[test]
    fn descriptions_on_the_same_line_and_optional_values_do_not_matter() {
        let options =
            Options::parse("  -h, --help     Print --nothing <else>\n      --color[=<WHEN>]  When\n  -x\n");
        assert_eq!(options.names().collect::<Vec<_>>(), ["color", "help"]);
        assert_eq!(options.takes_value("help"), Some(false));
        assert_eq!(options.takes_value("color"), Some(true));
    }
}
