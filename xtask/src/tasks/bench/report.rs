//! The figures as the benchmark writes them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a daemon serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Rafs,
    Passthrough,
}

/// One run.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Sample {
    pub(super) requests: f64,
    pub(super) bytes: f64,
    pub(super) seconds: f64,
    pub(super) p50_ns: f64,
}

/// The runs of one daemon in one row, or its plain figures.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Series {
    #[serde(default)]
    pub(super) samples: Vec<Sample>,
    #[serde(default)]
    pub(super) values: Vec<f64>,
}

/// All of it.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) processors: usize,
    pub(super) rounds: usize,
    pub(super) delay_ms: u64,
    pub(super) driver_ceiling: f64,
    pub(super) contenders: BTreeMap<String, Kind>,
    pub(super) rows: BTreeMap<String, BTreeMap<String, Series>>,
}

/// The middle of some figures, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl Spread {
    pub(super) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(figures[middle - 1], figures[middle])
        } else {
            figures[middle]
        };
        Some(Self { least, median, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 100.0]);
        let expected = Spread {
            least: 1.0,
            median: 3.5,
            most: 100.0,
        };
        assert_eq!(spread, Some(expected));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
