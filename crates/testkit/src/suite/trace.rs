//! The record of what guests read of an image.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};

use super::fixture::{Fixture, done, guest, refused};
use crate::image::RafsVersion;
use crate::peers::Skip;
use crate::tree;

type Outcome = Result<(), Skip>;

const IMAGE: &str = "/rafs/c1/lowerdir";
const TRACE: &str = "/api/v1/trace?mountpoint=/rafs/c1/lowerdir";

pub(super) fn of_what_is_read_first_v5(fx: &Fixture) -> Outcome {
    of_what_is_read_first(fx, RafsVersion::V5)
}

pub(super) fn of_what_is_read_first_v6(fx: &Fixture) -> Outcome {
    of_what_is_read_first(fx, RafsVersion::V6)
}

fn of_what_is_read_first(fx: &Fixture, version: RafsVersion) -> Outcome {
    const LENGTH: usize = 300_000;
    let source = fx.data_source(2, LENGTH);
    fs::create_dir_all(source.join("deep/er")).unwrap();
    let odd = source.join("deep/er").join(OsStr::from_bytes(b"od%d\xff\n"));
    fs::write(&odd, tree::bytes(9, 5)).unwrap();
    let image = fx.image(&source, version)?;
    let daemon = fx.daemon(&[]);
    done(&daemon.mount(IMAGE, &fx.local_body(&image)).unwrap());
    let call = |method: &str| daemon.api(method, TRACE, None).unwrap();
    let reads = || -> Vec<Value> {
        let mut answer = call("GET").json();
        assert_eq!(answer["complete"], true);
        let reads = answer["reads"].as_array_mut().unwrap();
        let times: Vec<u64> = reads
            .iter_mut()
            .map(|read| {
                read.as_object_mut()
                    .unwrap()
                    .remove("ms")
                    .unwrap()
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert!(times.is_sorted(), "{times:?}");
        reads.clone()
    };
    let mut fs = guest(&daemon);
    let node = |fs: &mut crate::guest::FuseClient, path: &[u8]| {
        let path = [IMAGE.as_bytes(), path].concat();
        fs.resolve(path).unwrap().nodeid
    };
    let (first, second) = (node(&mut fs, b"/file-0"), node(&mut fs, b"/file-1"));
    let odd = node(&mut fs, b"/deep/er/od%d\xff\n");
    fs.read(first, 0, 0, 4096).unwrap();
    refused(&call("GET"), 404);

    done(&call("PUT"));
    assert_eq!(reads(), [] as [Value; 0]);
    fs.read(second, 0, 8192, 4096).unwrap();
    fs.read(odd, 0, 0, 4096).unwrap();
    // Overlaps what was read, and goes on beyond the end.
    fs.read(second, 0, 4096, 8192).unwrap();
    let end = LENGTH as u64 - 100;
    fs.read(first, 0, end, 4096).unwrap();
    fs.read(first, 0, LENGTH as u64, 4096).unwrap();
    let part =
        |path: &str, offset: u64, length: u64| json!({"path": path, "offset": offset, "length": length});
    assert_eq!(
        reads(),
        [
            part("/file-1", 8192, 4096),
            part("/deep/er/od%25d%FF%0A", 0, 5),
            part("/file-1", 4096, 4096),
            part("/file-0", end, 100),
        ]
    );
    done(&call("PUT"));
    assert_eq!(reads(), [] as [Value; 0], "begun anew");
    done(&call("DELETE"));
    refused(&call("GET"), 404);
    let elsewhere = daemon.api("PUT", "/api/v1/trace?mountpoint=/none", None).unwrap();
    assert!(refused(&elsewhere, 500).contains("doesn't exist"));
    Ok(())
}
