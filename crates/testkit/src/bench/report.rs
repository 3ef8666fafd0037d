//! What was measured, as it is written to JSON. Judged and drawn by `cargo xtask bench data`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histogram::Sample;
use super::plan::Plan;

/// What a contender serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A RAFS image.
    Rafs,
    /// A host directory.
    Passthrough,
}

/// The figures of one row for one contender, one a round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Warm and cold loads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// Rows with one figure: bytes, or a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
}

/// Rows by name, in each the contenders by name.
pub type Rows = BTreeMap<String, BTreeMap<String, Series>>;

/// One benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Changes when a reader of the old one would misread it.
    pub version: u32,
    /// Processors of the machine.
    pub processors: usize,
    /// Rounds made.
    pub rounds: usize,
    /// Milliseconds of one run.
    pub span_ms: u64,
    /// Milliseconds the slow blob server takes for each request.
    pub delay_ms: u64,
    /// What the guest's driver reaches with 64 in flight against a responder that does nothing, requests a second.
    pub driver_ceiling: f64,
    /// What each contender serves.
    pub contenders: BTreeMap<String, Kind>,
    /// The figures.
    pub rows: Rows,
}

/// The version of the format written.
pub const VERSION: u32 = 1;

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            version: VERSION,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: plan.rounds,
            span_ms: ms(plan.span),
            delay_ms: ms(plan.delay),
            driver_ceiling: 0.0,
            contenders: BTreeMap::new(),
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn series(&mut self, row: &str, contender: &str, kind: Kind) -> &mut Series {
        self.contenders.insert(contender.to_owned(), kind);
        self.rows
            .entry(row.to_owned())
            .or_default()
            .entry(contender.to_owned())
            .or_default()
    }
}
