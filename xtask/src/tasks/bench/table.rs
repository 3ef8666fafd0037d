//! The figures as a table in Markdown.

use std::fmt::Write;

use super::judge::{Figure, Goal, ROWS, Row};
use super::report::{Kind, Report, Spread};

/// The columns: our daemon of a kind, its peers, how we stand.
const GROUPS: [(Kind, &str, &[&str]); 2] = [
    (Kind::Rafs, "RAFS", &["nydusbox rafs", "nydusd rafs"]),
    (
        Kind::Passthrough,
        "passthrough",
        &[
            "nydusbox passthrough",
            "nydusd passthrough",
            "virtiofsd pool 0",
            "virtiofsd pool 8",
        ],
    ),
];

/// The whole table with what has to be known to read it.
pub(super) fn markdown(report: &Report) -> String {
    let mut out = String::from("| work |");
    for (_, kind, columns) in GROUPS {
        for column in columns {
            let name = column.split_once(' ').map_or(*column, |(daemon, rest)| {
                if rest.starts_with("pool") { column } else { daemon }
            });
            _ = write!(out, " {name} ({kind}) |");
        }
        _ = write!(out, " × best | goal |");
    }
    _ = writeln!(
        out,
        "\n|---{}|",
        "|---".repeat(GROUPS.iter().map(|g| g.2.len() + 2).sum())
    );
    for row in ROWS.iter().filter(|row| report.rows.contains_key(row.name)) {
        _ = write!(out, "| {} |", row.title);
        for (kind, _, columns) in GROUPS {
            for column in columns {
                let figure = row.figure_of(report, column);
                _ = write!(
                    out,
                    " {} |",
                    figure.map_or(String::new(), |f| spread(row.figure, f))
                );
            }
            _ = write!(out, " {} |", standing(row, report, kind));
        }
        out.push('\n');
    }
    _ = writeln!(
        out,
        "\nMedians of {} rounds in turn, and their range, on {} processors; a guest of one thread that spins unless said \
         otherwise (by itself it does {:.1} M requests/s). The blob server takes {} ms a request. `× best`: how many \
         times as good as the best peer of the kind.",
        report.rounds,
        report.processors,
        report.driver_ceiling / 1e6,
        report.delay_ms
    );
    out
}

fn spread(figure: Figure, of: Spread) -> String {
    let median = number(of.median);
    let unit = figure.unit();
    if (of.most - of.least) < of.median * 0.02 {
        format!("{median} {unit}")
    } else {
        format!("{median} {unit} ({}–{})", number(of.least), number(of.most))
    }
}

/// Three digits, no more.
pub(super) fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn standing(row: &Row, report: &Report, kind: Kind) -> String {
    let Some(verdict) = row.verdict(report, kind) else {
        return " |".into();
    };
    let times = verdict.times.map_or(String::new(), number);
    let goal = row.goal(kind).map_or(String::new(), |goal| match goal {
        Goal::BestOfKind(times) => format!("≥ {}", number(times)),
        Goal::BestOfAll(times) => format!("≥ {} of all", number(times)),
        Goal::Plain(value) => format!("{} {}", number(value), row.figure.unit()),
    });
    let mark = match verdict.reached {
        Some(true) => " ✔",
        Some(false) => " ✘",
        None => "",
    };
    format!("{times} | {goal}{mark}")
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::report;
    use super::*;

    #[test]
    fn a_row_has_every_figure_the_ratio_and_the_mark() {
        let table = markdown(&report());
        let line = table
            .lines()
            .find(|l| l.contains("GETATTR, 64"))
            .unwrap_or_default();
        assert!(
            line.starts_with("| GETATTR, 64 in flight | 1300 k/s | 1000 k/s | 1.30 | ≥ 1.30 ✔ |"),
            "{line}"
        );
        let columns = |line: &str| line.matches('|').count();
        let first = table.lines().next().map(columns);
        assert!(
            table
                .lines()
                .take_while(|l| l.starts_with('|'))
                .all(|l| Some(columns(l)) == first),
            "{table}"
        );
    }
}
