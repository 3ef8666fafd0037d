//! The text, read back with another project's parser.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Instant;

use prometheus_parse::{Scrape as Parsed, Value};

use super::super::{Answered, FetchCounters, Reason, Tallies};
use super::*;

fn mount(name: &str, fetches: Option<FetchTotals>) -> MountScrape {
    let tallies = Tallies::new(1);
    let began = Instant::now();
    for (opcode, failed, bytes, took_us) in [(15, false, 5000, 7), (15, true, 0, 700), (1, false, 0, 3)] {
        let answered = Answered {
            nodeid: 1 << 56,
            opcode,
            began,
            failed,
            bytes,
        };
        tallies.count(
            tallies.worker(0),
            &answered,
            began + Duration::from_micros(took_us),
        );
    }
    MountScrape {
        mount: name.to_owned(),
        fs_type: FsType::Rafs,
        totals: tallies.totals(1),
        in_flight: 2,
        oldest: Duration::from_millis(1500),
        fetches,
    }
}

fn parsed(text: &str) -> Parsed {
    Parsed::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

fn value(parsed: &Parsed, name: &str, labels: &[(&str, &str)]) -> Value {
    let mut found = parsed.samples.iter().filter(|sample| {
        sample.metric == name
            && labels
                .iter()
                .all(|(key, value)| sample.labels.get(key) == Some(*value))
    });
    let first = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    assert!(found.next().is_none(), "{name} {labels:?} twice");
    first.value.clone()
}

#[test]
fn every_figure_is_a_series_with_its_labels() {
    let counters = FetchCounters::default();
    counters.note(Reason::Prefetch, 1 << 20, Duration::from_millis(60), false);
    counters.missed();
    let text = render(Scrape {
        version: "1.2.3".into(),
        vmm_connected: true,
        workers: 3,
        queues: vec![0, 7],
        mounts: vec![mount("/m", Some(counters.totals())), mount("/share", None)],
        ..Scrape::default()
    })
    .unwrap();
    let parsed = parsed(&text);
    let of = |name: &str, labels: &[(&str, &str)]| value(&parsed, &format!("{PREFIX}_{name}"), labels);
    let m = ("mount", "/m");
    assert_eq!(of("build_info", &[("version", "1.2.3")]), Value::Gauge(1.0));
    assert_eq!(of("vmm_connected", &[]), Value::Gauge(1.0));
    assert_eq!(of("workers", &[]), Value::Gauge(3.0));
    assert_eq!(of("queue_depth", &[("queue", "request0")]), Value::Gauge(7.0));
    assert_eq!(of("operations_total", &[m, ("op", "read")]), Value::Counter(2.0));
    assert_eq!(
        of("operations_total", &[m, ("op", "lookup")]),
        Value::Counter(1.0)
    );
    assert_eq!(
        of("operation_errors_total", &[m, ("op", "read")]),
        Value::Counter(1.0)
    );
    assert_eq!(of("read_bytes_total", &[m]), Value::Counter(5000.0));
    assert_eq!(of("written_bytes_total", &[m]), Value::Counter(0.0));
    assert_eq!(of("requests_in_flight", &[m]), Value::Gauge(2.0));
    assert_eq!(of("oldest_request_age_seconds", &[m]), Value::Gauge(1.5));
    // One READ failed, one missed.
    assert_eq!(of("cache_hits_total", &[m]), Value::Counter(0.0));
    assert_eq!(of("cache_misses_total", &[m]), Value::Counter(1.0));
    let prefetched = of("backend_read_bytes_total", &[m, ("reason", "prefetch")]);
    assert_eq!(prefetched, Value::Counter(f64::from(1 << 20)));
    assert!(
        parsed
            .samples
            .iter()
            .all(|s| !s.metric.contains("_cache_") || s.labels["mount"] == "/m")
    );
    let Value::Histogram(buckets) = of("operation_duration_seconds", &[m, ("op", "read")]) else {
        panic!("no histogram");
    };
    let at = |le: f64| buckets.iter().find(|b| b.less_than == le).map(|b| b.count);
    assert_eq!(
        (at(0.000_005), at(0.000_01), at(0.001)),
        (Some(0.0), Some(1.0), Some(2.0))
    );
    assert_eq!(at(f64::INFINITY), Some(2.0));
    let Value::Untyped(sum) = of("operation_duration_seconds_sum", &[m, ("op", "read")]) else {
        panic!("no sum");
    };
    assert!((sum - 0.000_707).abs() < 1e-9, "{sum}");
}

#[test]
fn labels_are_escaped_and_the_id_is_one_of_everything() {
    let text = render(Scrape {
        id: Some("a \"b\"".into()),
        mounts: vec![mount("/we\"ird\\path\nx", None)],
        ..Scrape::default()
    })
    .unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.contains(r#"id="a \"b\"""#), "{line}");
    }
    let escaped = r#"nydusbox_fsd_read_bytes_total{id="a \"b\"",mount="/we\"ird\\path\nx"} 5000"#;
    assert!(text.lines().any(|line| line == escaped), "{text}");
}

#[test]
fn every_family_has_its_type_and_what_it_means() {
    let text = render(Scrape::default()).unwrap();
    let names = |what: &str| -> Vec<String> {
        let prefix = format!("# {what} ");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines
            .filter_map(|rest| rest.split(' ').next())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(names("HELP"), names("TYPE"));
    assert_eq!(names("TYPE").len(), 20, "{text}");
}
