//! Latencies of one run, and the figures made of them.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One minute in nanoseconds; anything longer is a stuck daemon and counts as this.
const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, LONGEST_NS, 3)
                .expect("the bounds are in order and far enough apart"),
        )
    }
}

impl Latencies {
    /// Counts one request.
    pub fn record(&mut self, took: Duration) {
        self.0
            .saturating_record(u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS));
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of the requests (0 to 1) does not exceed, in nanoseconds.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }
}

/// What one run of one load measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Requests answered.
    pub requests: u64,
    /// Bytes of data in their answers.
    pub bytes: u64,
    /// How long the run took, in seconds.
    pub seconds: f64,
    /// Median latency, in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, in nanoseconds.
    pub p99_ns: u64,
}

impl Sample {
    /// The figures of a run.
    pub fn new(latencies: &Latencies, bytes: u64, took: Duration) -> Self {
        Self {
            requests: latencies.count(),
            bytes,
            seconds: took.as_secs_f64(),
            p50_ns: latencies.quantile_ns(0.5),
            p99_ns: latencies.quantile_ns(0.99),
        }
    }

    /// Requests a second.
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Bytes a second.
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        for us in 1..=100 {
            latencies.record(Duration::from_micros(us));
        }
        let sample = Sample::new(&latencies, 400, Duration::from_secs(2));
        assert_eq!(sample.requests, 100);
        assert!((49_900..=50_100).contains(&sample.p50_ns), "{sample:?}");
        assert!((98_900..=99_200).contains(&sample.p99_ns), "{sample:?}");
        assert!(
            (sample.per_second() - 50.0).abs() < 1e-9 && (sample.bytes_per_second() - 200.0).abs() < 1e-9
        );
    }
}
