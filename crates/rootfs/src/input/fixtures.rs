//! Documents as nydus-snapshotter and Kata write them, for the tests of this module.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(crate) const BOOTSTRAP: &str =
    "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/snapshots/9/fs/image/image.boot";
pub(crate) const SNAPSHOT_DIR: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/snapshots/257";
pub(crate) const SECRET: &str = "cGxhbnRlZDpzZWNyZXQ=";

/// Field for field what the snapshotter's `FuseDaemonConfig` marshals to.
pub(crate) fn config_v1() -> String {
    json!({
        "device": {
            "id": "/9",
            "backend": {"type": "registry", "config": {
                "readahead": false, "host": "127.0.0.1:5000", "repo": "library/debian", "auth": SECRET,
                "blob_url_scheme": "http", "scheme": "https", "proxy": {"fallback": false}, "timeout": 5,
                "connect_timeout": 5, "retry_limit": 2}},
            "cache": {"type": "blobcache",
                "config": {"work_dir": "/var/lib/nydus/cache", "disable_indexed_map": false}},
        },
        "mode": "direct", "digest_validate": false, "enable_xattr": true,
        "fs_prefetch": {"enable": true, "prefetch_all": false, "threads_count": 4},
    })
    .to_string()
}

pub(crate) fn config_v2() -> String {
    json!({
        "version": 2,
        "backend": {"type": "registry",
            "registry": {"host": "127.0.0.1:5000", "repo": "library/debian", "auth": SECRET}},
        "cache": {"type": "blobcache", "filecache": {"work_dir": "/var/lib/nydus/cache"}},
        "rafs": {"mode": "direct", "enable_xattr": true},
    })
    .to_string()
}

pub(crate) fn extra_option() -> Value {
    json!({"source": BOOTSTRAP, "config": config_v1(), "snapshotdir": SNAPSHOT_DIR, "fs_version": "v6"})
}

pub(crate) fn volume(volume_type: &str) -> Value {
    json!({
        "volume_type": volume_type, "source": BOOTSTRAP, "fs_type": "rafsv6",
        "nydus_image": {"config": config_v1(), "snapshot_dir": SNAPSHOT_DIR},
    })
}

pub(crate) fn encoded(document: &Value) -> String {
    STANDARD.encode(document.to_string())
}

pub(crate) fn without(mut document: Value, field: &str) -> Value {
    if let Value::Object(map) = &mut document {
        map.remove(field);
    }
    document
}
