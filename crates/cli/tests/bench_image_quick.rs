//! The benchmark of images runs: every conversion is found right, every start says what it should, each row is measured,
//! and no conversion takes more memory than is promised.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_testkit::bench_image::{Plan, run};
use nydusbox_testkit::machine::prerequisites::{debian_rootfs, guest};
use nydusbox_testkit::peers::{Peer, require, require_program};

/// What a shell needs, and what comes in another layer.
const LAYERS: [&[&str]; 2] = [
    &[
        "bin",
        "lib",
        "lib64",
        "etc/passwd",
        "etc/group",
        "etc/os-release",
        "usr/lib/os-release",
        "usr/lib64",
        "usr/bin/sh",
        "usr/bin/dash",
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
    ],
    &["usr/bin/bash", "usr/share/zoneinfo", "usr/share/perl5"],
];

/// Archives of a part of the root file system, and of more of it.
fn archives(rootfs: &Path, dir: &Path) -> Vec<PathBuf> {
    (1..=LAYERS.len())
        .map(|layers| {
            let out = dir.join(format!("{layers}.tar"));
            let status = Command::new("tar")
                .args(["--create", "--sort=name", "--ignore-failed-read", "--file"])
                .arg(&out)
                .arg("--directory")
                .arg(rootfs)
                .args(LAYERS[..layers].concat())
                .status()
                .unwrap();
            assert!(status.success());
            out
        })
        .collect()
}

#[test]
fn the_benchmark_runs_in_a_vm_and_measures_every_row() {
    let (Some((guest_root, _)), Some(rootfs)) = (guest(), debian_rootfs()) else {
        return;
    };
    for program in ["docker-registry", "skopeo", "time"] {
        if require_program(program).is_err() {
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let nydusbox = PathBuf::from(env!("CARGO_BIN_EXE_nydusbox"));
    let mut plan = Plan::quick(nydusbox, guest_root, dir.path().to_owned());
    plan.archives = archives(&rootfs, dir.path());
    plan.nydus_image = require(Peer::NydusImage).ok();
    plan.nydusd = require(Peer::Nydusd).ok();
    let report = run(&plan).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.image.layers, LAYERS.len());
    // Two images, two ways, three figures; a start and what it fetched; two starts after one was recorded.
    assert_eq!(report.rows.len(), 2 * 2 * 3 + 10 + 5, "{:?}", report.rows.keys());
    for (row, contenders) in &report.rows {
        assert!(contenders.contains_key("nydusbox"), "{row}: {contenders:?}");
        for values in contenders.values() {
            assert!(
                values.len() == 1 && values[0].is_finite(),
                "{row}: {contenders:?}"
            );
        }
        if row.ends_with("-peak") {
            assert!(contenders["nydusbox"][0] < 300.0, "{row}: {contenders:?}");
        }
    }
}
