//! What each row of the benchmark of images measures, what it has to reach, and whether it does. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::report::Spread;

/// Whose figures are judged.
pub(super) const OURS: &str = "nydusbox";

/// The figures as the benchmark writes them.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) processors: usize,
    pub(super) conversions: usize,
    pub(super) starts: usize,
    pub(super) slow_starts: usize,
    pub(super) slow_link: f64,
    pub(super) latency_ms: u64,
    pub(super) learned_latency_ms: u64,
    pub(super) large_bytes: f64,
    pub(super) image: Image,
    pub(super) rows: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

/// The image that was converted and started.
#[derive(Debug, Deserialize)]
pub(super) struct Image {
    pub(super) layers: usize,
    pub(super) compressed_bytes: f64,
    pub(super) archive_bytes: f64,
}

/// What has to be reached. Less is better in every row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// At most so many times the best of the others whose names begin so.
    Of(f64, &'static str),
    /// At most so much.
    AtMost(f64),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Its name in the report.
    pub(super) name: &'static str,
    /// What people read.
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) goal: Option<Goal>,
}

const fn row(name: &'static str, title: &'static str, unit: &'static str, goal: Option<Goal>) -> Row {
    Row {
        name,
        title,
        unit,
        goal,
    }
}

/// Conversions, against nydus-image.
const QUICKER: Option<Goal> = Some(Goal::Of(0.7, "nydus-image"));
/// A conversion's memory, in MB.
const FRUGAL: Option<Goal> = Some(Goal::AtMost(300.0));
/// First output, against pulling first: the quickest way to do that, which is our own.
const LAZY: Option<Goal> = Some(Goal::Of(1.0 / 3.0, "pull"));
/// Against pulling and unpacking with the tools that there are for that: less than [`LAZY`] asks for.
const LAZY_BESIDE_PEERS: Option<Goal> = Some(Goal::Of(1.0 / 3.0, "pull and unpack first"));
/// What is fetched, as a multiple of what the guest read.
const LITTLE: Option<Goal> = Some(Goal::AtMost(1.3));
/// First output with learned prefetch, against that without any.
const LEARNED: Option<Goal> = Some(Goal::Of(1.0 / 1.5, "nothing fetched ahead"));

/// The rows of one command that is started.
macro_rules! starts {
    ($name:literal, $title:literal) => {
        &[
            row(
                concat!("start-", $name, "-seconds"),
                concat!($title, ", first output"),
                "s",
                LAZY,
            ),
            row(
                concat!("start-", $name, "-slow-seconds"),
                "the same over a slow link",
                "s",
                LAZY,
            ),
            row(
                concat!("start-", $name, "-seconds"),
                "the first, against skopeo and tar only",
                "s",
                LAZY_BESIDE_PEERS,
            ),
            row(
                concat!("start-", $name, "-slow-seconds"),
                "the second, likewise",
                "s",
                LAZY_BESIDE_PEERS,
            ),
            row(
                concat!("start-", $name, "-booting-seconds"),
                "the same where each machine boots",
                "s",
                None,
            ),
            row(
                concat!("start-", $name, "-boot"),
                "of the first, waiting for the boot",
                "s",
                None,
            ),
            row(concat!("start-", $name, "-rest"), "and the rest", "s", LAZY),
            row(concat!("start-", $name, "-read"), "the guest read", "MB", None),
            row(
                concat!("start-", $name, "-fetched"),
                "the daemon fetched",
                "MB",
                None,
            ),
            row(
                concat!("start-", $name, "-fetched-of-read"),
                "fetched, of what was read",
                "×",
                LITTLE,
            ),
            row(
                concat!("start-", $name, "-sent"),
                "the registry sent, metadata too",
                "MB",
                None,
            ),
            row(
                concat!("start-", $name, "-sent-of-read"),
                "sent, of what was read",
                "×",
                LITTLE,
            ),
            row(
                concat!("start-", $name, "-requests"),
                "requests to the registry",
                "",
                None,
            ),
        ]
    };
}

/// All rows, in their order.
pub(super) const ROWS: [&[Row]; 5] = [
    &[
        row("convert-native-seconds", "convert, native", "s", QUICKER),
        row("convert-native-stored", "what it stores", "MB", None),
        row("convert-native-peak", "its memory, peak", "MB", FRUGAL),
        row("convert-ref-seconds", "convert, by reference", "s", QUICKER),
        row("convert-ref-stored", "what it stores", "MB", None),
        row("convert-ref-peak", "its memory, peak", "MB", FRUGAL),
        row("large-native-seconds", "convert a large layer, native", "s", None),
        row("large-native-stored", "what it stores", "MB", None),
        row("large-native-peak", "its memory, peak", "MB", FRUGAL),
        row("large-ref-seconds", "the same by reference", "s", None),
        row("large-ref-stored", "what it stores", "MB", None),
        row("large-ref-peak", "its memory, peak", "MB", FRUGAL),
    ],
    starts!("os-release", "`cat /etc/os-release`"),
    starts!("python", "`python3 -c 'import json'`"),
    starts!("shell", "a shell"),
    &[
        row("learned-seconds", "learned prefetch, first output", "s", LEARNED),
        row("learned-boot", "of it the boot", "s", None),
        row("learned-rest", "and the rest", "s", None),
        row("learned-read", "the guest read", "MB", None),
        row("learned-fetched", "the daemon fetched", "MB", None),
    ],
];

/// Our figure in a row, beside the best that it is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    /// Ours as a multiple of the best of the others.
    pub(super) times: Option<f64>,
    /// Whether the goal is reached, if there is one.
    pub(super) reached: Option<bool>,
}

impl Row {
    /// Everybody's figures, ours first.
    pub(super) fn figures<'a>(&self, report: &'a Report) -> Vec<(&'a str, Spread)> {
        let Some(row) = report.rows.get(self.name) else {
            return Vec::new();
        };
        let figures = row
            .iter()
            .filter_map(|(whose, values)| Some((&**whose, Spread::of(values.clone())?)));
        let (mut all, others): (Vec<_>, Vec<_>) = figures.partition(|(whose, _)| *whose == OURS);
        all.extend(others);
        all
    }

    /// How we stand; `None` if it was not measured.
    pub(super) fn verdict(&self, report: &Report) -> Option<Verdict> {
        let figures = self.figures(report);
        let (_, ours) = *figures.first().filter(|(whose, _)| *whose == OURS)?;
        let begin = match self.goal {
            Some(Goal::Of(_, begin)) => begin,
            Some(Goal::AtMost(_)) | None => "",
        };
        let others = figures[1..].iter().filter(|(whose, _)| whose.starts_with(begin));
        let best = others.map(|(_, spread)| spread.median).reduce(f64::min);
        let times = best.map(|best| ours.median / best);
        let reached = match self.goal {
            None => None,
            Some(Goal::AtMost(most)) => Some(ours.median <= most),
            Some(Goal::Of(most, _)) => times.map(|times| times <= most),
        };
        Some(Verdict { times, reached })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report() -> Report {
        let json = r#"{"processors":2,"conversions":3,"starts":3,"slow_starts":3,"slow_link":12500000,"latency_ms":20,"learned_latency_ms":100,
            "large_bytes":3e9,"image":{"layers":3,"compressed_bytes":1e8,"archive_bytes":3e8},
            "rows":{
                "convert-native-seconds":{"nydus-image":[10,11,9],"nydusbox":[7,6,8]},
                "convert-ref-seconds":{"nydus-image":[10],"nydusbox":[7.1]},
                "start-python-seconds":{"nydusbox":[2],"nydusd":[4],"pull and convert first":[5],"pull and unpack first":[5.9]},
                "start-python-fetched-of-read":{"nydusbox":[1.2],"nydusd":[9]},
                "start-python-read":{"nydusd":[9]}}}"#;
        serde_json::from_str(json).unwrap()
    }

    fn reached(row: &str) -> Option<bool> {
        let row = ROWS.iter().copied().flatten().find(|r| r.name == row).unwrap();
        row.verdict(&report()).and_then(|verdict| verdict.reached)
    }

    #[test]
    fn a_median_is_held_against_the_best_of_those_it_is_held_against() {
        assert_eq!(reached("convert-native-seconds"), Some(true));
        assert_eq!(reached("convert-ref-seconds"), Some(false));
        // A third of 5, not of 5.9; nydusd is not what it is about.
        assert_eq!(reached("start-python-seconds"), Some(false));
        assert_eq!(reached("start-python-fetched-of-read"), Some(true));
    }

    #[test]
    fn what_was_not_measured_of_us_is_not_judged() {
        assert_eq!(reached("start-python-read"), None);
        assert_eq!(reached("large-ref-peak"), None);
    }
}
