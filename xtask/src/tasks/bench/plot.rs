//! The figures as one picture: how many times as good as the best peer, row by row.
//!
//! Written by hand: bars, a line where the best peer is, a mark where the goal is. The scale is logarithmic,
//! because twice as good and half as good are equally far from the peer.

use std::fmt::Write;

use super::judge::{Goal, ROWS, Row, Verdict};
use super::report::{Kind, Report};
use super::table::number;

const WIDTH: f64 = 960.0;
/// Where the scale begins and ends.
const LEFT: f64 = 290.0;
const RIGHT: f64 = 690.0;
const TOP: f64 = 92.0;
const BAR: f64 = 15.0;
const GAP: f64 = 12.0;
/// The ends of the scale, as multiples of the best peer. What lies beyond is cut, its figure is written.
const LEAST: f64 = 0.25;
const MOST: f64 = 16.0;
const KINDS: [(Kind, &str, &str); 2] = [
    (Kind::Rafs, "#2a6f97", "RAFS image"),
    (Kind::Passthrough, "#e09f3e", "shared directory"),
];

/// The picture.
pub(super) fn svg(report: &Report) -> String {
    let rows: Vec<(&Row, Vec<(usize, Verdict)>)> = ROWS
        .iter()
        .map(|row| {
            let verdict = |(at, kind): (usize, &(Kind, _, _))| {
                let verdict = row.verdict(report, kind.0)?;
                verdict.times.map(|_| (at, verdict))
            };
            (row, KINDS.iter().enumerate().filter_map(verdict).collect())
        })
        .filter(|(_, bars): &(_, Vec<_>)| !bars.is_empty())
        .collect();
    let height_of = |bars: usize| BAR * f64::from(u32::try_from(bars).unwrap_or(0)) + GAP;
    let bottom = TOP + rows.iter().map(|(_, bars)| height_of(bars.len())).sum::<f64>();
    let mut out = String::new();
    head(&mut out, bottom);
    let mut y = TOP + GAP / 2.0;
    for (row, bars) in rows {
        let middle = y + (height_of(bars.len()) - GAP) / 2.0 + 4.0;
        text(&mut out, LEFT - 70.0, middle, "end", "#222", row.title);
        for (at, verdict) in bars {
            bar(&mut out, y, row, KINDS[at], &verdict);
            y += BAR;
        }
        y += GAP;
    }
    out.push_str("</svg>\n");
    out
}

fn head(out: &mut String, bottom: f64) {
    let height = bottom + 44.0;
    _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"Helvetica, Arial, \
         sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"18\" font-weight=\"bold\" fill=\"#222\">nydusbox against the best of nydusd \
         and virtiofsd</text>\n"
    );
    let explained = "bars to the right of the line: better than the best peer; the mark is the goal";
    text(out, 20.0, 48.0, "start", "#555", explained);
    let mut x = 20.0;
    for (_, colour, name) in KINDS {
        _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"60\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(out, x + 18.0, 70.0, "start", "#222", name);
        x += 120.0;
    }
    for times in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0] {
        let (x, best) = (place(times), (times - 1.0_f64).abs() < f64::EPSILON);
        let (colour, width) = if best { ("#444", 1.6) } else { ("#ddd", 1.0) };
        _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            TOP - 4.0
        );
        let label = if best {
            "best peer".to_owned()
        } else {
            format!("{times}×")
        };
        text(out, x, bottom + 18.0, "middle", "#555", &label);
    }
}

fn place(times: f64) -> f64 {
    let share = (times.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + share * (RIGHT - LEFT)
}

fn bar(out: &mut String, y: f64, row: &Row, (kind, colour, _): (Kind, &str, &str), verdict: &Verdict) {
    let (Some(times), Some(best)) = (verdict.times, verdict.best) else {
        return;
    };
    let (zero, end) = (place(1.0), place(times));
    _ = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
        zero.min(end),
        (end - zero).abs().max(1.0),
        BAR - 3.0
    );
    let goal = match row.goal(kind) {
        Some(Goal::BestOfKind(goal) | Goal::BestOfAll(goal)) => Some(goal),
        // Where the goal is on this scale: what it would be times the peer.
        Some(Goal::Plain(goal)) => Some(times * verdict.times_of(row, goal)),
        None => None,
    };
    if let Some(goal) = goal.filter(|goal| (LEAST..=MOST).contains(goal)) {
        let x = place(goal);
        _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#b00020\" stroke-width=\"2\"/>",
            y - 1.0,
            y + BAR - 2.0
        );
    }
    let unit = row.figure.unit();
    let figures = format!(
        "{}×: {} against {} {unit}",
        number(times),
        number(verdict.ours.median),
        number(best)
    );
    text(out, RIGHT + 16.0, y + BAR - 5.0, "start", "#222", &figures);
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::report;
    use super::*;

    #[test]
    fn a_bar_begins_at_the_peer_and_ends_where_we_are() {
        assert!((place(1.0) - (LEFT + (RIGHT - LEFT) / 3.0)).abs() < 1e-9);
        assert!(place(1e9) <= RIGHT && place(0.0) >= LEFT);
        let picture = svg(&report());
        assert!(picture.contains("1.30×: 1300 against 1000 k/s"), "{picture}");
        assert!(picture.ends_with("</svg>\n") && !picture.contains("idle memory"));
    }
}
