//! What is counted, and the two forms it is shown in.
//!
//! ```text
//! worker -> tally (one each, no shared cache line) --\
//! fetches -> fetches (shared: each is a request)  ----+-> control -> prometheus (GET /metrics)
//! inflight, pool, rings  ----------------------------/            -> nydus (nydusd's JSON)
//! ```
//! Counting decides nothing, and nothing is kept per file. Next: `tally.rs`, then `prometheus.rs`.

mod fetches;
pub(crate) mod nydus;
mod operation;
pub(crate) mod prometheus;
mod tally;

pub(crate) use fetches::{FetchCounters, Reason};
pub(crate) use tally::{Answered, Tallies, Tally, Totals};
