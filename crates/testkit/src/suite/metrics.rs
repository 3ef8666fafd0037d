//! What the daemon counts, as Prometheus and nydusd's clients read it, beside what was really asked of it.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;

use prometheus_parse::{Scrape, Value};
use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, done, guest, refused};
use super::gate::{HELD, Held, hold_reads};
use crate::daemon::DaemonProcess;
use crate::guest::fuse::ops;
use crate::image::{RafsVersion, passthrough_body};
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

const IMAGE: &str = "/rafs/c1/lowerdir";
const RDWR: u32 = 2;

/// All figures at one moment.
struct Figures(Scrape);

impl Figures {
    fn of(daemon: &DaemonProcess) -> Self {
        let answer = daemon.api("GET", "/metrics", None).unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("text/plain; version=0.0.4; charset=utf-8"))
        );
        Self(Scrape::parse(answer.body.lines().map(|line| Ok(line.to_owned()))).unwrap())
    }

    /// A series; 0 if there is none yet.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("nydusbox_fsd_{name}");
        let series = self.0.samples.iter().find(|sample| {
            sample.metric == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(key) == Some(*value))
        });
        match series.map(|sample| &sample.value) {
            None => 0.0,
            Some(Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) => *value,
            Some(other) => panic!("{name} is {other:?}"),
        }
    }

    fn has_mount(&self, mount: &str) -> bool {
        let labels = self.0.samples.iter().map(|sample| sample.labels.get("mount"));
        labels.flatten().any(|label| label == mount)
    }
}

pub(super) fn count_what_was_asked(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 300_000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    done(&daemon.mount(IMAGE, &fx.local_body(&image)).unwrap());
    fs::write(fx.share().join("file"), "content").unwrap();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let file = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
    let before = Figures::of(&daemon);
    assert!(before.get("vmm_connected", &[]) == 1.0 && before.get("workers", &[]) >= 2.0);

    for _ in 0..5 {
        fs.getattr(file).unwrap();
    }
    let handle = fs.open(file, RDWR).unwrap();
    fs.write(file, handle.fh, 0, &[7; 10_000]).unwrap();
    assert_eq!(fs.read(file, handle.fh, 0, 20_000).unwrap().len(), 10_000);
    fs.release(file, handle).unwrap();
    let missing = fs.lookup(share, b"missing").unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::NOENT));
    assert_eq!(
        fs.mkdir(share, b"file", 0o755).unwrap_err().errno(),
        Some(Errno::EXIST)
    );

    let after = Figures::of(&daemon);
    let added = |name: &str, labels: &[(&str, &str)]| after.get(name, labels) - before.get(name, labels);
    let of = |op| [("mount", SHARE), ("op", op)];
    for (op, count, errors) in [
        ("getattr", 5.0, 0.0),
        ("open", 1.0, 0.0),
        ("write", 1.0, 0.0),
        ("read", 1.0, 0.0),
        ("release", 1.0, 0.0),
        // That there is no such name is an answer.
        ("lookup", 1.0, 0.0),
        ("mkdir", 1.0, 1.0),
    ] {
        assert_eq!(added("operations_total", &of(op)), count, "{op}");
        assert_eq!(added("operation_duration_seconds_count", &of(op)), count, "{op}");
        assert_eq!(added("operation_errors_total", &of(op)), errors, "{op}");
    }
    assert_eq!(added("read_bytes_total", &[("mount", SHARE)]), 10_000.0);
    assert_eq!(added("written_bytes_total", &[("mount", SHARE)]), 10_000.0);
    assert_eq!(after.get("requests_in_flight", &[("mount", SHARE)]), 0.0);

    // nydusd's clients see the same: hits of Getattr, Open, Release and Read.
    let json = |id: &str| {
        daemon
            .api("GET", &format!("/api/v1/metrics?id={id}"), None)
            .unwrap()
            .json()
    };
    let shown = json(SHARE);
    let hits = |n: usize| shown["fop_hits"][n].as_f64().unwrap();
    assert_eq!(hits(0), after.get("operations_total", &of("getattr")));
    assert_eq!((hits(2), hits(3), hits(4)), (1.0, 1.0, 1.0), "{shown}");
    assert_eq!(
        (&shown["data_read"], &shown["nr_opens"]),
        (&10_000.into(), &0.into())
    );

    let image = [("mount", IMAGE)];
    assert_eq!(fs.read_file(format!("{IMAGE}/file-0")).unwrap().len(), 300_000);
    let cold = Figures::of(&daemon);
    assert_eq!(cold.get("read_bytes_total", &image), 300_000.0);
    assert!(cold.get("cache_misses_total", &image) >= 1.0);
    let fetched = |figures: &Figures, name: &str| -> f64 {
        let reasons = ["demand", "read_ahead", "prefetch"];
        reasons
            .iter()
            .map(|reason| figures.get(name, &[("mount", IMAGE), ("reason", reason)]))
            .sum()
    };
    // Blobs are compressed.
    let sent = fetched(&cold, "backend_read_bytes_total");
    assert!(sent > 0.0 && sent <= 301_000.0, "{sent}");
    assert_eq!(
        fetched(&cold, "backend_requests_total"),
        cold.get("backend_request_duration_seconds_count", &image)
    );
    assert_eq!(fs.read_file(format!("{IMAGE}/file-0")).unwrap().len(), 300_000);
    let warm = Figures::of(&daemon);
    assert_eq!(warm.get("read_bytes_total", &image), 600_000.0);
    assert_eq!(
        warm.get("cache_misses_total", &image),
        cold.get("cache_misses_total", &image)
    );
    assert!(warm.get("cache_hits_total", &image) > cold.get("cache_hits_total", &image));
    assert_eq!(
        fetched(&warm, "backend_requests_total"),
        fetched(&cold, "backend_requests_total")
    );
    let backend = daemon
        .api("GET", &format!("/api/v1/metrics/backend?id={IMAGE}"), None)
        .unwrap()
        .json();
    assert_eq!(
        backend["read_count"].as_f64().unwrap(),
        fetched(&warm, "backend_requests_total")
    );
    assert_eq!(
        backend["read_amount_total"].as_f64().unwrap(),
        fetched(&warm, "backend_read_bytes_total")
    );
    assert_eq!(json(IMAGE)["data_read"], 600_000);
    Ok(())
}

pub(super) fn show_what_is_held(fx: &Fixture) -> Outcome {
    let Held {
        server,
        daemon,
        mut fs,
        tickets,
    } = hold_reads(fx)?;
    let image = [("mount", "/image")];
    let held = Figures::of(&daemon);
    assert_eq!(held.get("requests_in_flight", &image), HELD as f64);
    assert_eq!(held.get("requests_in_flight", &[("mount", SHARE)]), 0.0);
    // One for each of them; whether there is a spare one already is the monitor's business.
    let (workers, busy) = (held.get("workers", &[]), held.get("workers_busy", &[]));
    assert!(busy >= HELD as f64 && workers >= busy, "{busy} of {workers}");
    // Scraped while those are served, and others come and go.
    let file = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
    let getattrs = [("mount", SHARE), ("op", "getattr")];
    for n in 1..=200 {
        let ticket = fs.submit(ops::getattr(file, None)).unwrap();
        let during = Figures::of(&daemon).get("operations_total", &getattrs);
        fs.wait(ticket).unwrap();
        let after = Figures::of(&daemon).get("operations_total", &getattrs);
        assert!(
            during == f64::from(n - 1) || during == f64::from(n),
            "{during} of {n}"
        );
        assert_eq!(after, f64::from(n));
    }
    // It ages by itself, and nydusd's list has it too.
    let oldest = Figures::of(&daemon).get("oldest_request_age_seconds", &image);
    assert!(oldest > held.get("oldest_request_age_seconds", &image));
    let list = daemon
        .api("GET", "/api/v1/metrics/inflight", None)
        .unwrap()
        .json();
    let ages = list
        .as_array()
        .unwrap()
        .iter()
        .map(|request| request["age_ms"].as_u64().unwrap());
    assert!(ages.max().unwrap() as f64 / 1000.0 >= oldest);
    server.release();
    for ticket in tickets {
        fs.wait(ticket).unwrap();
    }
    assert_eq!(Figures::of(&daemon).get("requests_in_flight", &image), 0.0);
    Ok(())
}

pub(super) fn go_with_their_mount(fx: &Fixture) -> Outcome {
    let source = fx.data_source(1, 5000);
    let image = fx.image(&source, RafsVersion::V6)?;
    let daemon = fx.daemon(&[]);
    let odd = r#"/we"ird\share"#;
    done(&daemon.mount(odd, &passthrough_body(&fx.share())).unwrap());
    let text = daemon.api("GET", "/metrics", None).unwrap().body;
    assert!(text.contains(r#"mount="/we\"ird\\share""#), "{text}");
    let mut fs = guest(&daemon);
    let reads = [("mount", IMAGE), ("op", "read")];
    // The place in the VFS is used again each time.
    for _round in 0..3 {
        done(&daemon.mount(IMAGE, &fx.local_body(&image)).unwrap());
        let fresh = Figures::of(&daemon);
        assert!(fresh.has_mount(IMAGE));
        assert_eq!(fresh.get("operations_total", &reads), 0.0);
        fs.read_file(format!("{IMAGE}/file-0")).unwrap();
        assert!(Figures::of(&daemon).get("operations_total", &reads) > 0.0);
        done(&daemon.umount(IMAGE).unwrap());
        assert!(!Figures::of(&daemon).has_mount(IMAGE));
        for category in ["", "/files", "/pattern", "/backend"] {
            let target = format!("/api/v1/metrics{category}?id={IMAGE}");
            refused(&daemon.api("GET", &target, None).unwrap(), 404);
        }
    }
    Ok(())
}
