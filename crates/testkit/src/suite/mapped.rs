//! Cache files that are read through a mapping: what may be mapped, and what becomes of reads when somebody does to the
//! files what kills whoever has mapped them without care.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use super::cold::{Cold, cache_file, cache_path, cold};
use super::fixture::{Fixture, done};
use crate::daemon::DaemonProcess;
use crate::image::RafsVersion;
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

/// How often a file is cut while it is read.
const CUTS: u64 = 24;

/// Files in the cache directory itself that a process has open, one entry a descriptor, and the inode numbers of those
/// it maps, with what it may do there. By number, because a file that was made without a name keeps none in `/proc`.
fn used_by(daemon: &DaemonProcess, cache: &Path) -> (Vec<String>, Vec<(u64, String)>) {
    let proc = Path::new("/proc").join(daemon.pid().to_string());
    let shared = |path: &Path| (path.parent() == Some(cache)).then(|| path.display().to_string());
    let open = fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|fd| shared(&fs::read_link(fd.unwrap().path()).ok()?))
        .collect();
    let maps = fs::read_to_string(proc.join("maps")).unwrap();
    let mapped = maps.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        shared(Path::new(fields.get(5)?))?;
        Some((fields[4].parse().unwrap(), fields[1].to_owned()))
    });
    (open, mapped.collect())
}

/// Whether our daemon maps cache files on this file system at all.
#[must_use]
pub fn may_be_mapped(dir: &Path) -> bool {
    let found = rustix::fs::statfs(dir).unwrap().f_type;
    cfg!(target_arch = "x86_64") && [0xef53, 0x9123_683e].contains(&found)
}

/// nydus maps the chunk map, too, for writing, and makes a file longer that is too short.
pub(super) fn cache_files_are_opened_once_and_only_data_is_mapped(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    let (mut fs, _) = cold.guest(&daemon);
    cold.assert_reads_right(&mut fs);
    let (open, mapped) = used_by(&daemon, &cache);
    assert_eq!(open.len(), 2, "the data and their map: {open:?}");
    let data = fs::metadata(cache_path(&cache, ".blob.data")).unwrap().ino();
    let expected = may_be_mapped(&cache).then(|| (data, "r--s".to_owned()));
    assert_eq!(mapped, Vec::from_iter(expected));
    drop(fs);
    done(&daemon.umount("/image").unwrap());
    assert_eq!(used_by(&daemon, &cache).1, [], "nothing stays mapped");
    let mut left: Vec<_> = fs::read_dir(&cache)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert!(
        left.iter()
            .map(|n| n.to_str().unwrap().split_once('.').unwrap().1)
            .eq(["blob.data", "blob.data.chunk_map", "blob.meta"]),
        "the caches and the table, for the next: {left:?}"
    );
    Ok(())
}

/// Reads everything, again and again, while somebody does something to the cache; each read begins with that.
fn read_while(cold: &Cold, daemon: &DaemonProcess, times: u64, act: impl Fn(u64) + Sync) {
    let (mut fs, _) = cold.guest(daemon);
    cold.assert_reads_right(&mut fs);
    let together = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            for time in 0..times {
                together.wait();
                act(time);
            }
        });
        for _ in 0..times {
            together.wait();
            cold.assert_reads_right(&mut fs);
        }
    });
    cold.assert_reads_right(&mut fs);
    assert!(daemon.is_alive());
}

/// Anywhere: at a page, in the middle of one, in the last one.
pub(super) fn cache_cut_while_it_is_read_gives_no_wrong_byte(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    let length = |file: &File| file.metadata().unwrap().len();
    read_while(&cold, &daemon, CUTS, |time| {
        let data = cache_file(&cache, ".blob.data");
        let to = match time % 3 {
            0 => length(&data) * time / CUTS / 4096 * 4096,
            1 => length(&data) * time / CUTS,
            _ => length(&data) - 1,
        };
        data.set_len(to).unwrap();
    });
    Ok(())
}

/// The old ones stay with whoever has them, and new ones are found empty at the next mount.
pub(super) fn cache_replaced_while_it_is_read_gives_no_wrong_byte(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    let data = cache_path(&cache, ".blob.data");
    let size = fs::metadata(&data).unwrap().len();
    read_while(&cold, &daemon, 3, |_| {
        fs::remove_file(&data).unwrap();
        File::create_new(&data).unwrap().set_len(size).unwrap();
    });
    Ok(())
}

/// A read under way ends with the right bytes or an error, and what it has mapped goes when it is done.
pub(super) fn cache_is_let_go_by_reads_that_an_unmount_overtakes(fx: &Fixture) -> Outcome {
    let cold = cold(fx, RafsVersion::V6)?;
    let cache = fx.path("cache");
    let daemon = cold.daemon(fx, &cold.config(fx, &cache));
    let (mut fs, node) = cold.guest(&daemon);
    cold.assert_reads_right(&mut fs);
    let reading = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            reading.wait();
            done(&daemon.umount("/image").unwrap());
        });
        let mut begun = false;
        for at in (0..cold.content.len()).step_by(1 << 20).cycle() {
            let Ok(read) = fs.read(node, 0, at as u64, 1 << 20) else {
                break;
            };
            assert!(read == cold.content[at..at + (1 << 20)]);
            if !std::mem::replace(&mut begun, true) {
                reading.wait();
            }
        }
    });
    assert!(daemon.is_alive());
    assert_eq!(used_by(&daemon, &cache), (vec![], vec![]));
    Ok(())
}
