//! What each row measures, what it has to reach, and whether it does. Pure.

use super::report::{Kind, Report, Series, Spread};

/// Which figure of a run counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// Median latency, in µs.
    Microseconds,
    /// Requests a second, in thousands.
    Thousands,
    /// GB a second.
    Gigabytes,
    /// MB a second.
    Megabytes,
    /// A size, in MB.
    Size,
    /// A multiple.
    Multiple,
}

/// What has to be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// At least so many times as good as the best peer of the kind.
    BestOfKind(f64),
    /// At least so many times as good as the best peer of any kind.
    BestOfAll(f64),
    /// At least so good, whatever the peers do.
    Plain(f64),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Its name in the report.
    pub(super) name: &'static str,
    /// What people read.
    pub(super) title: &'static str,
    pub(super) figure: Figure,
    pub(super) rafs: Option<Goal>,
    pub(super) passthrough: Option<Goal>,
}

const fn row(
    name: &'static str,
    title: &'static str,
    figure: Figure,
    rafs: Option<Goal>,
    passthrough: Option<Goal>,
) -> Row {
    Row {
        name,
        title,
        figure,
        rafs,
        passthrough,
    }
}

use Figure::{Gigabytes, Megabytes, Microseconds, Multiple, Size, Thousands};
use Goal::{BestOfAll, BestOfKind, Plain};

/// A latency of 0.7 times the best peer's.
const QUICKER: Option<Goal> = Some(BestOfAll(1.0 / 0.7));

pub(super) const ROWS: [Row; 14] = [
    row(
        "getattr-1",
        "GETATTR, 1 in flight, p50",
        Microseconds,
        QUICKER,
        QUICKER,
    ),
    row(
        "getattr-1-interrupt",
        "the same, guest sleeps meanwhile",
        Microseconds,
        None,
        None,
    ),
    row(
        "getattr-64",
        "GETATTR, 64 in flight",
        Thousands,
        Some(BestOfKind(1.3)),
        Some(BestOfKind(1.5)),
    ),
    row(
        "lookup-64",
        "LOOKUP, 64 in flight",
        Thousands,
        Some(BestOfKind(1.3)),
        Some(BestOfKind(1.5)),
    ),
    row(
        "list-8",
        "READDIRPLUS of 16 KiB, 8 in flight",
        Thousands,
        None,
        None,
    ),
    row(
        "read-4k-1",
        "READ 4 KiB warm, 1 in flight, p50",
        Microseconds,
        QUICKER,
        QUICKER,
    ),
    row(
        "read-4k-1-interrupt",
        "the same, guest sleeps meanwhile",
        Microseconds,
        None,
        None,
    ),
    row(
        "read-4k-64",
        "READ 4 KiB warm, 64 in flight",
        Thousands,
        Some(BestOfKind(2.0)),
        Some(BestOfKind(1.3)),
    ),
    row(
        "read-1m-8",
        "READ 1 MiB warm, 8 in flight",
        Gigabytes,
        Some(BestOfKind(1.5)),
        Some(BestOfKind(1.0)),
    ),
    row(
        "cold-getattr",
        "GETATTR beside 8 cold reads, p50",
        Microseconds,
        Some(Plain(100.0)),
        None,
    ),
    row(
        "cold-read-8",
        "cold, 8 readers of 1 MiB chunks",
        Megabytes,
        Some(Plain(75.0)),
        None,
    ),
    row(
        "cold-sequential",
        "cold, one sequential reader",
        Megabytes,
        Some(Plain(60.0)),
        None,
    ),
    row(
        "cold-shared",
        "fetched by 4 daemons, one cache",
        Multiple,
        Some(Plain(1.05)),
        None,
    ),
    row(
        "idle-pss",
        "idle memory, Pss",
        Size,
        Some(Plain(4.0)),
        Some(Plain(4.0)),
    ),
];

impl Figure {
    pub(super) fn unit(self) -> &'static str {
        match self {
            Microseconds => "µs",
            Thousands => "k/s",
            Gigabytes => "GB/s",
            Megabytes => "MB/s",
            Size => "MB",
            Multiple => "×",
        }
    }

    fn less_is_better(self) -> bool {
        match self {
            Microseconds | Size | Multiple => true,
            Thousands | Gigabytes | Megabytes => false,
        }
    }

    fn of(self, series: &Series) -> Option<Spread> {
        let samples = series.samples.iter();
        let figures = match self {
            Microseconds => samples.map(|s| s.p50_ns / 1e3).collect(),
            Thousands => samples.map(|s| s.requests / s.seconds / 1e3).collect(),
            Gigabytes => samples.map(|s| s.bytes / s.seconds / 1e9).collect(),
            Megabytes => samples.map(|s| s.bytes / s.seconds / 1e6).collect(),
            Size => series.values.iter().map(|v| v / 1e6).collect(),
            Multiple => series.values.clone(),
        };
        Spread::of(figures)
    }

    /// How many times as good one figure is as another.
    fn times(self, ours: f64, theirs: f64) -> f64 {
        if self.less_is_better() {
            theirs / ours
        } else {
            ours / theirs
        }
    }
}

/// Our figure of one kind in one row, beside the best peer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    pub(super) ours: Spread,
    /// The best peer of the kind, if there is one.
    pub(super) best: Option<f64>,
    /// How many times as good as that.
    pub(super) times: Option<f64>,
    /// Whether the goal is reached, if there is one.
    pub(super) reached: Option<bool>,
}

impl Verdict {
    /// A figure as a multiple of ours, in the direction in which more is better.
    pub(super) fn times_of(&self, row: &Row, figure: f64) -> f64 {
        row.figure.times(figure, self.ours.median)
    }
}

impl Row {
    pub(super) fn goal(&self, kind: Kind) -> Option<Goal> {
        match kind {
            Kind::Rafs => self.rafs,
            Kind::Passthrough => self.passthrough,
        }
    }

    /// A contender's figure.
    pub(super) fn figure_of(&self, report: &Report, contender: &str) -> Option<Spread> {
        self.figure.of(report.rows.get(self.name)?.get(contender)?)
    }

    fn best(&self, report: &Report, of: impl Fn(Kind) -> bool) -> Option<f64> {
        let peers = report
            .contenders
            .iter()
            .filter(|(name, kind)| !is_ours(name) && of(**kind));
        let medians = peers.filter_map(|(name, _)| Some(self.figure_of(report, name)?.median));
        medians.reduce(if self.figure.less_is_better() {
            f64::min
        } else {
            f64::max
        })
    }

    /// How we stand; `None` if it was not measured.
    pub(super) fn verdict(&self, report: &Report, kind: Kind) -> Option<Verdict> {
        let (name, _) = report
            .contenders
            .iter()
            .find(|(name, its)| is_ours(name) && **its == kind)?;
        let ours = self.figure_of(report, name)?;
        let best = self.best(report, |its| its == kind);
        let reaches =
            |peer: Option<f64>, goal: f64| peer.map(|peer| self.figure.times(ours.median, peer) >= goal);
        let reached = match self.goal(kind) {
            None => None,
            Some(BestOfKind(goal)) => reaches(best, goal),
            Some(BestOfAll(goal)) => reaches(self.best(report, |_| true), goal),
            Some(Plain(goal)) => Some(self.figure.times(ours.median, goal) >= 1.0),
        };
        Some(Verdict {
            ours,
            best,
            times: best.map(|best| self.figure.times(ours.median, best)),
            reached,
        })
    }
}

pub(super) fn is_ours(contender: &str) -> bool {
    contender.starts_with("nydusbox")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
pub(super) mod tests {
    use super::*;

    /// Two daemons of each kind in two rows.
    pub(in super::super) fn report() -> Report {
        let latency =
            |ns: u32| format!(r#"{{"samples":[{{"requests":9,"bytes":0,"seconds":1,"p50_ns":{ns}}}]}}"#);
        let rate = |n: u32| format!(r#"{{"samples":[{{"requests":{n},"bytes":0,"seconds":1,"p50_ns":1}}]}}"#);
        let json = format!(
            r#"{{"processors":2,"rounds":1,"delay_ms":100,"driver_ceiling":5e6,
            "contenders":{{"nydusbox rafs":"rafs","nydusd rafs":"rafs",
                "nydusbox passthrough":"passthrough","virtiofsd pool 0":"passthrough"}},
            "rows":{{"getattr-1":{{"nydusbox rafs":{},"nydusd rafs":{},"virtiofsd pool 0":{}}},
                "getattr-64":{{"nydusbox rafs":{},"nydusd rafs":{},"nydusbox passthrough":{}}},
                "idle-pss":{{"nydusbox rafs":{{"values":[4100000]}}}}}}}}"#,
            latency(6000),
            latency(10_000),
            latency(8000),
            rate(1_300_000),
            rate(1_000_000),
            rate(5),
        );
        serde_json::from_str(&json).unwrap()
    }

    fn verdict(row: &str, kind: Kind) -> Option<Verdict> {
        let row = ROWS.iter().find(|r| r.name == row).unwrap();
        row.verdict(&report(), kind)
    }

    #[test]
    fn a_latency_is_better_when_it_is_less_and_is_held_against_the_best_of_all() {
        let verdict = verdict("getattr-1", Kind::Rafs).unwrap();
        assert!((verdict.times.unwrap() - 10.0 / 6.0).abs() < 1e-9);
        // 6 µs is 0.6 of its kind's best, but 0.75 of the best of all.
        assert_eq!((verdict.best, verdict.reached), (Some(10.0), Some(false)));
    }

    #[test]
    fn a_rate_is_held_against_its_kind_and_needs_a_peer() {
        assert_eq!(verdict("getattr-64", Kind::Rafs).unwrap().reached, Some(true));
        assert_eq!(verdict("getattr-64", Kind::Passthrough).unwrap().reached, None);
        assert_eq!(verdict("lookup-64", Kind::Rafs), None);
    }

    #[test]
    fn a_plain_goal_needs_no_peer() {
        assert_eq!(verdict("idle-pss", Kind::Rafs).unwrap().reached, Some(false));
    }
}
