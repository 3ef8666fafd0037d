//! What a program needs to start is fetched while nobody has asked for it yet, and nothing else is.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::{Fixture, done, guest};
use crate::blob_server::{BlobServer, total_bytes};
use crate::daemon::DaemonProcess;
use crate::image::{self, Image, RafsVersion, mount_body};
use crate::peers::{Peer, Skip, require};
use crate::tree;

type Outcome = Result<(), Skip>;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;
/// What is not needed, in MiB; what is, is 4 of them.
const REST: usize = 8;
const NEEDED: usize = 4;
/// How a guest finds the program: the first of these is not there.
const CANDIDATES: [&str; 3] = ["/usr/local/bin/tool", "/bin/tool", "/rest"];

/// A little-endian 64-bit ELF file (System V gABI, chapters 4 and 5): its program headers, what it names, and content
/// up to 2 MiB, all of which is loaded.
fn executable(interpreter: &str, library: &str, search: &str) -> Vec<u8> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    let names = format!("\0{interpreter}\0{library}\0{search}\0");
    let names_at = HEADER + 3 * SEGMENT;
    let dynamic_at = (names_at + names.len()).next_multiple_of(8);
    // DT_STRTAB, DT_STRSZ, DT_NEEDED, DT_RUNPATH, DT_NULL; the file is loaded at address 0.
    let (library_at, search_at) = (interpreter.len() + 2, interpreter.len() + library.len() + 3);
    let dynamic = [
        (5, names_at),
        (10, names.len()),
        (1, library_at),
        (29, search_at),
        (0, 0),
    ];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let halves =
        |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let words = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let longs = |file: &mut Vec<u8>, values: &[usize]| {
        values.iter().for_each(|v| file.extend((*v as u64).to_le_bytes()));
    };
    // A shared object for x86-64.
    halves(&mut file, &[3, 62]);
    words(&mut file, &[1]);
    longs(&mut file, &[0, HEADER, 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 3, 0, 0, 0]);
    let segments = [
        (3, names_at + 1, interpreter.len() + 1),
        (1, 0, 2 * MIB),
        (2, dynamic_at, dynamic.len() * 16),
    ];
    for (kind, at, size) in segments {
        words(&mut file, &[kind, 4]);
        longs(&mut file, &[at, at, at, size, size, 8]);
    }
    file.extend(names.as_bytes());
    file.resize(dynamic_at, 0);
    for (tag, value) in dynamic {
        longs(&mut file, &[tag, value]);
    }
    file.extend(tree::bytes(1, 2 * MIB - file.len()));
    file
}

struct Stocked {
    image: Image,
    server: BlobServer,
    /// Files with their contents.
    needed: Vec<(&'static str, Vec<u8>)>,
}

/// An image with a script, its interpreter behind a link, and what that is linked to.
fn stocked(fx: &Fixture, table: &[&str]) -> Result<Stocked, Skip> {
    let builder = require(Peer::NydusImage)?;
    let source = fx.path("source");
    let needed = vec![
        ("usr/bin/tool", b"#!/opt/run -x\n".to_vec()),
        (
            "opt/real/bin/run",
            executable("/opt/ld.so", "libthing.so", "/nowhere:$ORIGIN/../lib"),
        ),
        ("opt/real/lib/libthing.so", tree::bytes(2, MIB)),
        ("opt/ld.so", tree::bytes(3, MIB)),
    ];
    for (path, content) in &needed {
        let path = source.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    symlink("usr/bin", source.join("bin")).unwrap();
    symlink("real/bin/run", source.join("opt/run")).unwrap();
    fs::write(source.join("rest"), tree::bytes(4, REST * MIB)).unwrap();
    let out = fx.path("image");
    let image = image::build_with_prefetch(&builder, &source, &out, RafsVersion::V6, table).unwrap();
    let server = BlobServer::start(&image.blobs).unwrap();
    Ok(Stocked {
        image,
        server,
        needed,
    })
}

fn mount(fx: &Fixture, stocked: &Stocked, prefetch: bool) -> DaemonProcess {
    let config = image::rafs_config_http_proxy(&stocked.server.address(), &fx.path("cache"));
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["rafs"]["prefetch"] = json!({"enable": prefetch, "threads": 1});
    let body = mount_body("rafs", &stocked.image.bootstrap, &config.to_string());
    let mut body: Value = serde_json::from_str(&body).unwrap();
    body["prefetch_program"] = json!(CANDIDATES);
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/image", &body.to_string()).unwrap());
    daemon
}

impl Stocked {
    /// The length in the blob of so many MiB: all of it is alike. Less 2 %, for what is no content.
    fn share_of_blob(&self, mib: usize) -> u64 {
        let blob = total_bytes(&self.image.blobs).unwrap();
        blob * mib as u64 / (NEEDED + REST) as u64 * 98 / 100
    }

    fn await_fetched(&self, mib: usize) {
        let end = Instant::now() + PATIENCE;
        while self.server.counters().bytes < self.share_of_blob(mib) {
            assert!(Instant::now() < end, "{:?}", self.server.counters());
            std::thread::yield_now();
        }
    }
}

pub(super) fn what_a_program_needs(fx: &Fixture) -> Outcome {
    let stocked = stocked(fx, &[])?;
    let daemon = mount(fx, &stocked, false);
    stocked.await_fetched(NEEDED);
    stocked.server.hold();
    let mut fs = guest(&daemon);
    for (path, content) in &stocked.needed {
        assert!(
            fs.read_file(format!("/image/{path}")).unwrap() == *content,
            "{path}"
        );
    }
    let fetched = stocked.server.counters().bytes;
    assert!(fetched < stocked.share_of_blob(NEEDED + 1), "{fetched} bytes");
    stocked.server.release();
    assert!(fs.read_file("/image/rest").unwrap() == tree::bytes(4, REST * MIB));
    Ok(())
}

/// Where a configuration says that it may.
pub(super) fn not_where_the_image_knows_better(fx: &Fixture) -> Outcome {
    let stocked = stocked(fx, &["/rest"])?;
    let daemon = mount(fx, &stocked, true);
    stocked.await_fetched(REST);
    stocked.server.hold();
    let mut fs = guest(&daemon);
    assert!(fs.read_file("/image/rest").unwrap() == tree::bytes(4, REST * MIB));
    let fetched = stocked.server.counters().bytes;
    assert!(fetched < stocked.share_of_blob(REST + 1), "{fetched} bytes");
    stocked.server.release();
    Ok(())
}
