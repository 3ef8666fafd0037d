//! What our shares do and nydusd's do not: the host copies, syncs and makes nameless files; groups count; read-only.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use super::fixture::{Fixture, SHARE, done, guest};
use crate::guest::FuseClient;
use crate::guest::fuse::types::ENTRY_BYTES;
use crate::guest::fuse::wire::{init, op};
use crate::guest::fuse::{ROOT, ops};
use crate::guest::request::Request;
use crate::image;
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

const RDWR: u32 = 2;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn answered(fs: &mut FuseClient, request: Request) -> Result<Vec<u8>, Errno> {
    let ticket = fs.submit(request).unwrap();
    fs.wait(ticket).map_err(|error| error.errno().unwrap())
}

/// `fuse_copy_file_range_in`; node, handle and offset of each file.
fn copy(from: (u64, u64, u64), to: (u64, u64, u64), len: u64, flags: u64) -> Request {
    let mut request =
        Request::new(op::COPY_FILE_RANGE, from.0).arg(words(&[from.1, from.2, to.0, to.1, to.2, len, flags]));
    request.reply_args = 8;
    request
}

pub(super) fn copied_on_the_host(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let other = fx.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "").unwrap();
    done(&daemon.mount("/other", &image::passthrough_body(&other)).unwrap());
    let mut fs = guest(&daemon);
    let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs.write_file(format!("{SHARE}/from"), &content).unwrap();
    fs.write_file(format!("{SHARE}/to"), b"start").unwrap();
    let mut open = |path: &str| {
        let node = fs.resolve(path).unwrap().nodeid;
        (node, fs.open(node, RDWR).unwrap().fh)
    };
    let (from, to) = (open(&format!("{SHARE}/from")), open(&format!("{SHARE}/to")));
    let elsewhere = open("/other/file");
    let body = answered(&mut fs, copy((from.0, from.1, 1000), (to.0, to.1, 5), 50_000, 0)).unwrap();
    assert_eq!(body, [50_000_u32.to_le_bytes(), [0; 4]].concat());
    let host = fs::read(fx.share().join("to")).unwrap();
    assert!(host[..5] == *b"start" && host[5..] == content[1000..51_000]);
    // The guest then reads and writes; ENOSYS would keep it from ever asking again.
    for (request, errno) in [
        (
            copy((from.0, from.1, 0), (elsewhere.0, elsewhere.1, 0), 1, 0),
            Errno::XDEV,
        ),
        (copy((from.0, from.1 + 1, 0), (to.0, to.1, 0), 1, 0), Errno::BADF),
        (copy((from.0, from.1, 0), (to.0, to.1, 0), 1, 1), Errno::INVAL),
    ] {
        assert_eq!(answered(&mut fs, request).unwrap_err(), errno);
    }
    Ok(())
}

pub(super) fn other_devices(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let other = fx.path("other");
    fs::create_dir(&other).unwrap();
    done(&daemon.mount("/other", &image::passthrough_body(&other)).unwrap());
    let mut fs = guest(&daemon);
    fs.write_file(format!("{SHARE}/file"), b"text").unwrap();
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let file = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
    let other = fs.resolve("/other").unwrap().nodeid;
    for refused in [
        fs.rename((share, b"file"), (other, b"file")),
        fs.rename2((share, b"file"), (other, b"file"), 1),
        fs.link(file, other, b"file").map(drop),
    ] {
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::XDEV));
    }
    Ok(())
}

/// What is mounted there is one device, whichever of its two numbers the guest uses for the root.
pub(super) fn root_is_no_other_device(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/", &image::passthrough_body(&fx.share())).unwrap());
    let mut fs = guest(&daemon);
    let dir = fs.mkdir(ROOT, b"dir", 0o755).unwrap().nodeid;
    fs.write_file("/file", b"text").unwrap();
    fs.rename((ROOT, b"file"), (dir, b"moved")).unwrap();
    let file = fs.resolve("/dir/moved").unwrap().nodeid;
    fs.link(file, ROOT, b"file").unwrap();
    assert_eq!(fs::read(fx.share().join("file")).unwrap(), b"text");
    Ok(())
}

pub(super) fn synced(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    for node in [ROOT, share] {
        assert_eq!(
            answered(&mut fs, Request::new(op::SYNCFS, node).arg(words(&[0]))),
            Ok(vec![])
        );
    }
    Ok(())
}

pub(super) fn nameless(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let tmpfile = |node| {
        let mut request = ops::create(node, b"#1", 0o600, RDWR);
        request.opcode = op::TMPFILE;
        request
    };
    let body = match answered(&mut fs, tmpfile(share)) {
        // The host's file system has none.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        made => made.unwrap(),
    };
    let at = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    let (node, handle) = (at(0), at(ENTRY_BYTES));
    fs.write(node, handle, 0, b"text").unwrap();
    assert_eq!(fs::read_dir(fx.share()).unwrap().count(), 0);
    fs.link(node, share, b"named").unwrap();
    assert_eq!(fs::read(fx.share().join("named")).unwrap(), b"text");
    assert_eq!(answered(&mut fs, tmpfile(ROOT)).unwrap_err(), Errno::OPNOTSUPP);
    Ok(())
}

/// What leads to a mount at `/` is the mount itself, also where a request goes past the tree of mounts.
pub(super) fn nameless_at_the_root(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&[]);
    done(&daemon.mount("/", &image::passthrough_body(&fx.share())).unwrap());
    let mut fs = guest(&daemon);
    let dir = fs.mkdir(ROOT, b"dir", 0o755).unwrap().nodeid;
    let mut tmpfile = |node| {
        let mut request = ops::create(node, b"#1", 0o600, 2);
        request.opcode = op::TMPFILE;
        answered(&mut fs, request).map(drop)
    };
    // EOPNOTSUPP where the host's file system has none.
    let below = tmpfile(dir);
    assert!(matches!(below, Ok(()) | Err(Errno::OPNOTSUPP)), "{below:?}");
    assert_eq!(tmpfile(ROOT), below);
    Ok(())
}

pub(super) fn supplementary_groups(fx: &Fixture) -> Outcome {
    const CREATE_SUPP_GROUP: u64 = 1 << 34;
    let daemon = fx.sharing_daemon();
    let team = fx.share().join("team");
    fs::create_dir(&team).unwrap();
    chown(&team, Some(0), Some(77)).unwrap();
    fs::set_permissions(&team, fs::Permissions::from_mode(0o770)).unwrap();
    let mut fs = guest(&daemon);
    // FUSE_INIT as Linux 6.3 sends it.
    let body = answered(&mut fs, ops::init(38, init::LINUX_6_1 | CREATE_SUPP_GROUP)).unwrap();
    let flags2 = u32::from_le_bytes(body[32..36].try_into().unwrap());
    assert_eq!(u64::from(flags2) << 32 & CREATE_SUPP_GROUP, CREATE_SUPP_GROUP);
    let node = fs.resolve(format!("{SHARE}/team")).unwrap().nodeid;
    fs.act_as(1234, 5678);
    assert_eq!(
        answered(&mut fs, ops::mkdir(node, b"not", 0o755)).unwrap_err(),
        Errno::ACCESS
    );
    let mut request = ops::mkdir(node, b"dir", 0o755);
    // `fuse_ext_header` of 16 bytes, FUSE_EXT_GROUPS, one group.
    request.extensions = [16_u32, 32, 1, 77]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    answered(&mut fs, request).unwrap();
    let made = fs::metadata(team.join("dir")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1234, 5678));
    // A guest that offers the flag where nobody looks sends no groups: it has checked them itself.
    answered(&mut fs, ops::init(38, CREATE_SUPP_GROUP)).unwrap();
    let node = fs.resolve(format!("{SHARE}/team")).unwrap().nodeid;
    answered(&mut fs, ops::mkdir(node, b"other", 0o755)).unwrap();
    Ok(())
}

pub(super) fn read_only(fx: &Fixture) -> Outcome {
    let daemon = fx.daemon(&[]);
    fs::write(fx.share().join("file"), "content").unwrap();
    let body = image::mount_body("passthrough_fs", &fx.share(), r#"{"read_only":true}"#);
    done(&daemon.mount(SHARE, &body).unwrap());
    let mut fs = guest(&daemon);
    let share = fs.resolve(SHARE).unwrap().nodeid;
    let file = fs.resolve(format!("{SHARE}/file")).unwrap().nodeid;
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"content");
    for refused in [
        fs.open(file, RDWR).map(drop),
        fs.create(share, b"new", 0o644, RDWR).map(drop),
        fs.mkdir(share, b"new", 0o755).map(drop),
        fs.unlink(share, b"file"),
        fs.setxattr(file, b"user.x", b"x", 0),
    ] {
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::ROFS));
    }
    assert_eq!(fs::read_dir(fx.share()).unwrap().count(), 1);
    Ok(())
}

/// A file system takes any name, and so do those who copy what it lists.
pub(super) fn attributes_of_any_name(fx: &Fixture) -> Outcome {
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let node = fs.write_file(format!("{SHARE}/file"), b"").unwrap().nodeid;
    let host = fx.share().join("file");
    for name in ["user.a/b", "user./", "user.", "user..", "user.../x"] {
        let refused = rustix::fs::setxattr(&host, name, b"host", XattrFlags::empty()).err();
        let set = fs.setxattr(node, name.as_bytes(), b"value", 0);
        assert_eq!(set.err().and_then(|e| e.errno()), refused, "{name}");
        if refused.is_none() {
            assert_eq!(fs.getxattr(node, name.as_bytes()).unwrap(), b"value", "{name}");
            assert_eq!(fs.listxattr(node).unwrap(), [name.as_bytes()]);
            fs.removexattr(node, name.as_bytes()).unwrap();
        }
        let gone = fs.getxattr(node, name.as_bytes()).unwrap_err().errno();
        let on_host = rustix::fs::getxattr(&host, name, &mut [0; 16]).unwrap_err();
        assert_eq!(gone, Some(on_host), "{name}");
    }
    Ok(())
}

/// Beyond it a process that has not said otherwise is ended.
pub(super) fn limit_of_file_sizes(fx: &Fixture) -> Outcome {
    const LIMIT: u64 = 1 << 20;
    let daemon = fx.sharing_daemon();
    let mut fs = guest(&daemon);
    let node = fs.write_file(format!("{SHARE}/file"), b"text").unwrap().nodeid;
    let handle = fs.open(node, RDWR).unwrap().fh;
    let limit = Rlimit {
        current: Some(LIMIT),
        maximum: Some(LIMIT),
    };
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
    rustix::process::prlimit(pid, Resource::Fsize, limit).unwrap();
    let refused = fs.write(node, handle, LIMIT, b"x").unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::FBIG));
    assert_eq!(fs.read_file(format!("{SHARE}/file")).unwrap(), b"text");
    Ok(())
}
