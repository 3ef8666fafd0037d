//! The figures of the benchmark of images as a table in Markdown.

use std::fmt::Write;

use super::super::report::Spread;
use super::super::table::number;
use super::judge::{Goal, OURS, ROWS, Report, Row};

/// The whole table with what has to be known to read it.
pub(super) fn markdown(report: &Report) -> String {
    let mut out = String::from("| what | nydusbox | others | × best | goal |\n|---|---|---|---|---|\n");
    for row in ROWS.into_iter().flatten() {
        let figures = row.figures(report);
        if figures.is_empty() {
            continue;
        }
        let shown = |of: Spread| spread(row, of);
        let ours = figures.iter().find(|(whose, _)| *whose == OURS);
        let others = figures.iter().filter(|(whose, _)| *whose != OURS);
        let others: Vec<_> = others
            .map(|(whose, of)| format!("{whose} {}", shown(*of)))
            .collect();
        _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            row.title,
            ours.map_or(String::new(), |(_, of)| shown(*of)),
            others.join("<br>"),
            standing(row, report)
        );
    }
    _ = writeln!(
        out,
        "\nMedians and their range, of {} conversions and {} starts in turn ({} over the slow link), on {} processors. The \
         image: {} layers, {} MB gzipped, {} MB as archives. The large layer: {} GB of files, half of which can't be \
         compressed; once. nydus-image 2.2.0 makes the same format (RAFS v6, zstd, chunks of 1 MiB) of each layer, one \
         after the other, then merges. A request to the registry takes {} ms, {} ms where prefetch was learned (for the \
         same python), and nothing else limits it but the slow link, of {} Mbit/s. Every start has an empty cache. Its \
         guest, emulated where there is no KVM, is the same for all, and goes on from a machine that was booted before \
         unless it is said that it boots. To pull and unpack first takes skopeo and tar, after \
         which an image that is all there is booted; to pull and convert first is `nydusbox run` of the original image.",
        report.conversions,
        report.starts,
        report.slow_starts,
        report.processors,
        report.image.layers,
        number(report.image.compressed_bytes / 1e6),
        number(report.image.archive_bytes / 1e6),
        number(report.large_bytes / 1e9),
        report.latency_ms,
        report.learned_latency_ms,
        number(report.slow_link * 8.0 / 1e6),
    );
    out
}

fn spread(row: &Row, of: Spread) -> String {
    let median = number(of.median);
    let text = if (of.most - of.least) <= of.median * 0.02 {
        format!("{median} {}", row.unit)
    } else {
        format!("{median} {} ({}–{})", row.unit, number(of.least), number(of.most))
    };
    text.replace("  ", " ").trim_end().to_owned()
}

fn standing(row: &Row, report: &Report) -> String {
    let Some(verdict) = row.verdict(report) else {
        return " |".into();
    };
    let times = verdict.times.map_or(String::new(), number);
    let goal = row.goal.map_or(String::new(), |goal| match goal {
        Goal::Of(times, of) => {
            let of = if of == "pull" { "pulling first" } else { of };
            format!("≤ {} × {of}", number(times))
        }
        Goal::AtMost(most) => format!("≤ {} {}", number(most), row.unit),
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
        let line = |title: &str| table.lines().find(|l| l.starts_with(title)).unwrap_or_default();
        assert_eq!(
            line("| convert, native"),
            "| convert, native | 7.00 s (6.00–8.00) | nydus-image 10.0 s (9.00–11.0) | 0.70 | ≤ 0.70 × nydus-image ✔ |"
        );
        assert_eq!(
            line("| `python3"),
            "| `python3 -c 'import json'`, first output | 2.00 s | nydusd 4.00 s<br>pull and convert first 5.00 s<br>pull and unpack first 5.90 s \
             | 0.40 | ≤ 0.33 × pulling first ✘ |"
        );
        assert_eq!(
            line("| the guest read"),
            "| the guest read |  | nydusd 9.00 MB |  | |"
        );
        let columns = |line: &str| line.matches('|').count();
        assert!(
            table
                .lines()
                .take_while(|l| l.starts_with('|'))
                .all(|l| columns(l) == 6),
            "{table}"
        );
    }
}
