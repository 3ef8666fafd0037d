//! Images as the daemon mounts and serves them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use nydusbox_fsd::fuzzing::{mount_and_walk, program_needs};
use nydusbox_protocol::MountCommand;
use serde_json::json;

use crate::calm::calm;
use crate::foreign::{blobs, in_memory, scratch};

/// Where RAFS v6 has its magic number, and its extended superblock: flags, the place of the table of blobs, its length.
const V6_MAGIC_AT: usize = 1024;
const V6_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
const V6_EXTENDED_AT: usize = 1024 + 128;
/// nydus asks for the table of a blob that isn't there for some seconds, on a thread of its own.
const MOST_THREADS: usize = 100;

/// A bootstrap that is mounted, and everything looked at.
pub fn mount(data: &[u8]) {
    calm();
    let is_v6 = data.get(V6_MAGIC_AT..V6_MAGIC_AT + 4) == Some(&V6_MAGIC[..]);
    let has_blobs = !is_v6 || what_blobs(data).is_some_and(|blobs| known_blobs().contains(&blobs));
    if !has_blobs && threads() > MOST_THREADS {
        return;
    }
    let Ok((_file, path)) = in_memory(data) else {
        return;
    };
    // Mounts of one configuration share what nydus has of a blob, and wait for it.
    let id = if has_blobs { "known" } else { "unknown" };
    let cache = scratch().join(id);
    let _exists = fs::create_dir(&cache);
    let config = json!({
        "version": 2,
        "id": id,
        "backend": {"type": "localfs", "localfs": {"dir": blobs()}},
        "cache": {"type": "blobcache", "filecache": {"work_dir": cache}},
        "rafs": {"mode": "direct", "enable_xattr": true},
    });
    let command = MountCommand::rafs(path.display().to_string(), config.to_string());
    if let Err(error) = mount_and_walk(&command, has_blobs) {
        assert!(!error.to_string().contains('\n'), "one sentence: {error}");
    }
}

/// The file of a program, of which is read what it needs: how much that is, is bounded.
pub fn program(data: &[u8]) {
    calm();
    if let Some((libraries, longest)) = program_needs(data) {
        assert!(libraries <= 64, "{libraries} libraries");
        // A path of an interpreter may be as long as a table.
        assert!(longest <= 64 << 10, "a name of {longest} bytes");
    }
}

/// What an image of RAFS v6 says of its blobs: its flags and the table.
fn what_blobs(data: &[u8]) -> Option<Vec<u8>> {
    let extended = data.get(V6_EXTENDED_AT..V6_EXTENDED_AT + 20)?;
    let begin = usize::try_from(u64::from_le_bytes(extended[8..16].try_into().ok()?)).ok()?;
    let length = u32::from_le_bytes(extended[16..].try_into().ok()?) as usize;
    let table = data.get(begin..begin.checked_add(length)?)?;
    Some([&extended[..8], table].concat())
}

/// Of the seeds, whose blobs are there.
fn known_blobs() -> &'static HashSet<Vec<u8>> {
    static KNOWN: OnceLock<HashSet<Vec<u8>>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/mount");
        let files = fs::read_dir(seeds).into_iter().flatten().flatten();
        let contents = files.filter_map(|file| fs::read(file.path()).ok());
        contents.filter_map(|data| what_blobs(&data)).collect()
    })
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
