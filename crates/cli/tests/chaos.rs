//! Cold images while everything goes wrong: `nydusbox_testkit::chaos` says what. Seconds here; `cargo xtask chaos` for
//! as long as one likes.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nydusbox_testkit::chaos;
use nydusbox_testkit::daemon::Program;

/// How long, in seconds.
const SECONDS: &str = "NYDUSBOX_CHAOS_SECONDS";
/// With which seed: that of a run that failed.
const SEED: &str = "NYDUSBOX_CHAOS_SEED";

#[test]
fn no_read_is_wrong_or_stuck_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = Duration::from_secs(number(SECONDS).unwrap_or(8));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs());
    let seed = number(SEED).unwrap_or(now);
    let program = Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")));
    println!("seed {seed}");
    // A skip has been printed where it was found.
    if let Ok(report) = chaos::run(&program, length, seed) {
        println!("{report:?}");
    }
}
