//! Operations that some mounts have nothing to answer to. To a guest's kernel all mounts are one connection, and what is
//! answered ENOSYS once it asks for no more, of any mount.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use rustix::io::Errno;

use super::fixture::{Fixture, SHARE, done, guest};
use crate::guest::FuseClient;
use crate::guest::fuse::types::SetAttr;
use crate::guest::fuse::{ROOT, ops};
use crate::guest::request::Request;
use crate::image::RafsVersion;
use crate::peers::Skip;

type Outcome = Result<(), Skip>;

fn answered(fs: &mut FuseClient, request: Request) -> Result<Vec<u8>, Errno> {
    let ticket = fs.submit(request).unwrap();
    fs.wait(ticket).map_err(|error| error.errno().unwrap())
}

/// What a directory or file that cannot be changed answers to each, whoever it belongs to.
fn answers_of(node: u64) -> Vec<(Request, Result<Vec<u8>, Errno>)> {
    let refused = Err(Errno::ROFS);
    let mut answers: Vec<_> = [
        ops::setattr(node, &SetAttr::default()),
        ops::symlink(node, b"new", b"x"),
        ops::mknod(node, b"new", 0o100_600, 0),
        ops::mkdir(node, b"new", 0o700),
        ops::unlink(node, b"file"),
        ops::rmdir(node, b"file"),
        ops::rename((node, b"file"), (node, b"new")),
        ops::rename2((node, b"file"), (node, b"new"), 1),
        ops::link(node, node, b"new"),
        ops::create(node, b"new", 0o600, 2),
        ops::write(node, 0, 0, b"x"),
        ops::fallocate(node, 0, 0, 10, 0),
        ops::setxattr(node, b"user.x", b"x", 0, false),
        ops::removexattr(node, b"user.x"),
    ]
    .map(|request| (request, refused.clone()))
    .into();
    answers.extend([
        (ops::flush(node, 0), Ok(vec![])),
        (ops::fsync(node, 0, false), Ok(vec![])),
        (ops::fsyncdir(node, 0), Ok(vec![])),
        (ops::getxattr(node, b"user.x", 100), Err(Errno::NODATA)),
        (ops::listxattr(node, 100), Ok(vec![])),
        (ops::listxattr(node, 0), Ok(vec![0; 8])),
    ]);
    answers
}

pub(super) fn switches_nothing_off(fx: &Fixture) -> Outcome {
    const DATA: u32 = 3;
    const HOLE: u32 = 4;
    let image = fx.image(&fx.data_source(1, 5000), RafsVersion::V6)?;
    let daemon = fx.sharing_daemon();
    done(&daemon.mount("/images/one", &fx.local_body(&image)).unwrap());
    let mut fs = guest(&daemon);
    let above = fs.resolve("/images").unwrap().nodeid;
    let root = fs.resolve("/images/one").unwrap().nodeid;
    let file = fs.lookup(root, b"file-0").unwrap().nodeid;
    for node in [ROOT, above, root, file] {
        for (request, expected) in answers_of(node) {
            let opcode = request.opcode;
            assert_eq!(
                answered(&mut fs, request),
                expected,
                "opcode {opcode} of node {node:#x}"
            );
        }
    }
    for flags in [1, 2, 0o1000] {
        let opened = answered(&mut fs, ops::open(file, flags));
        assert_eq!(opened.unwrap_err(), Errno::ROFS, "{flags:#o}");
    }
    let fh = fs.open(file, 0).unwrap().fh;
    for (offset, whence, found) in [
        (0, DATA, Ok(0)),
        (4999, DATA, Ok(4999)),
        (0, HOLE, Ok(5000)),
        (5000, DATA, Err(Errno::NXIO)),
        (5000, HOLE, Err(Errno::NXIO)),
    ] {
        let sought = fs.lseek(file, fh, offset, whence).map_err(|e| e.errno().unwrap());
        assert_eq!(sought, found, "{offset} {whence}");
    }
    let shared = fs.write_file(format!("{SHARE}/file"), b"text").unwrap().nodeid;
    let fh = fs.open(shared, 0).unwrap().fh;
    assert_eq!(fs.lseek(shared, fh, 0, HOLE).unwrap(), 4);
    Ok(())
}
