//! What is unmounted is gone: nothing of an image stays open in the daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Daemon;
use common::sandboxes::{Sandboxes, until};
use serde_json::json;

/// Also when it goes before nydus has read its table of chunks, as here, where nobody reads in between.
#[test]
fn no_descriptor_of_an_image_outlives_its_mount() {
    let (files, daemon) = (Sandboxes::new(), Daemon::start(&[]));
    let (bootstrap, config) = files.image();
    let config = std::fs::read_to_string(config).unwrap();
    let body = json!({"fs_type": "rafs", "source": bootstrap, "config": config}).to_string();
    let target = "/api/v1/mount?mountpoint=/image";
    for _ in 0..50 {
        assert_eq!(daemon.request("POST", target, &body).0, 204);
        assert_eq!(daemon.request("DELETE", target, "").0, 204);
    }
    let descriptors = format!("/proc/{}/fd", daemon.child.id());
    let mut open = Vec::new();
    until("no blob is open", || {
        let links = std::fs::read_dir(&descriptors).unwrap().flatten();
        let paths = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        open = paths.filter(|path| path.starts_with(files.dir.path())).collect();
        // nydus gives up a table it cannot get after twelve seconds: that would be too late.
        assert!(open.len() < 10, "{} files are open: {open:?}", open.len());
        open.is_empty()
    });
    let left = std::fs::read_dir(files.dir.join("cache/.nydusbox"));
    assert!(left.is_err(), "the work directory is still there");
}
