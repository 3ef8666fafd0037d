//! Requests prepared before a run, with what their answers must hold.
//!
//! All calls of a load have one shape, so that its chains are laid out once and only a node and an argument are
//! written for each request. Written from the FUSE headers, as `guest::fuse::ops` is.

use std::ops::Range;
use std::sync::Arc;

use crate::guest::fuse::types::{ATTR_OUT_BYTES, ENTRY_BYTES};
use crate::guest::fuse::wire::op;

/// What the requests of a load have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `fuse_in_header.opcode`.
    pub opcode: u32,
    /// Bytes of the argument after the header.
    pub arg: usize,
    /// Bytes of the answer's fixed part after its header.
    pub reply: usize,
    /// Bytes of data in the answer, in pages.
    pub data: usize,
    /// How it ends.
    pub outcome: Outcome,
}

/// How a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered with what it asks for.
    Answer,
    /// It is answered with this error, a positive number.
    Error(i32),
    /// There is no answer.
    Silence,
}

/// What an answer must hold: these bytes, `at` bytes after its header.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Where in the body.
    pub at: usize,
    /// Where they are taken from.
    pub content: Arc<[u8]>,
    /// Which of it.
    pub range: Range<usize>,
}

impl Expected {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.content.get(self.range.clone()).unwrap_or_default()
    }

    fn word(at: usize, value: u64) -> Self {
        Self {
            at,
            content: value.to_le_bytes().into(),
            range: 0..8,
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// `fuse_in_header.nodeid`.
    pub nodeid: u64,
    /// The argument.
    pub arg: Vec<u8>,
    /// The answer.
    pub expected: Expected,
}

/// FUSE_GETATTR of a file whose size is known.
pub fn getattr(nodeid: u64, size: u64) -> Call {
    Call {
        nodeid,
        arg: vec![0; 16],
        // `fuse_attr_out`: 16 bytes, then the inode number, then the size.
        expected: Expected::word(24, size),
    }
}

/// The shape of [`getattr`].
pub const GETATTR: Shape = Shape {
    opcode: op::GETATTR,
    arg: 16,
    reply: ATTR_OUT_BYTES,
    data: 0,
    outcome: Outcome::Answer,
};

/// FUSE_LOOKUP of a name whose node is known.
pub fn lookup(parent: u64, name: &str, nodeid: u64) -> Call {
    Call {
        nodeid: parent,
        arg: [name.as_bytes(), &[0]].concat(),
        expected: Expected::word(0, nodeid),
    }
}

/// The shape of [`lookup`] of names of this length.
pub fn lookup_shape(name: usize) -> Shape {
    Shape {
        opcode: op::LOOKUP,
        arg: name + 1,
        reply: ENTRY_BYTES,
        data: 0,
        outcome: Outcome::Answer,
    }
}

/// The shape of [`lookup`] of names of this length that are not there. An image says so in an answer with node 0, a
/// share with an error.
pub fn no_entry_shape(name: usize, outcome: Outcome) -> Shape {
    Shape {
        outcome,
        ..lookup_shape(name)
    }
}

/// FUSE_FORGET of one lookup. Nothing is answered.
pub fn forget(nodeid: u64) -> Call {
    Call {
        nodeid,
        arg: 1_u64.to_le_bytes().to_vec(),
        expected: Expected {
            at: 0,
            content: Arc::new([]),
            range: 0..0,
        },
    }
}

/// The shape of [`forget`].
pub const FORGET: Shape = Shape {
    opcode: op::FORGET,
    arg: 8,
    reply: 0,
    data: 0,
    outcome: Outcome::Silence,
};

/// `fuse_read_in`.
fn read_in(fh: u64, offset: usize, size: usize) -> Vec<u8> {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let mut arg = Vec::with_capacity(READ_IN);
    arg.extend(fh.to_le_bytes());
    arg.extend((offset as u64).to_le_bytes());
    arg.extend(size.to_le_bytes());
    arg.resize(READ_IN, 0);
    arg
}

/// Size of `fuse_read_in`, in bytes.
const READ_IN: usize = 40;

/// FUSE_READ of a whole range of a file whose content is known.
pub fn read(nodeid: u64, fh: u64, content: &Arc<[u8]>, range: Range<usize>) -> Call {
    Call {
        nodeid,
        arg: read_in(fh, range.start, range.len()),
        expected: Expected {
            at: 0,
            content: Arc::clone(content),
            range,
        },
    }
}

/// The shape of [`read`] of this many bytes.
pub fn read_shape(size: usize) -> Shape {
    Shape {
        opcode: op::READ,
        arg: READ_IN,
        reply: 0,
        data: size,
        outcome: Outcome::Answer,
    }
}

/// The shape of [`list`] that is answered with this many bytes, names and numbers.
pub fn readdir_shape(size: usize) -> Shape {
    Shape {
        opcode: op::READDIR,
        ..read_shape(size)
    }
}

/// FUSE_READDIR or FUSE_READDIRPLUS from the beginning of a directory, for as much as is expected.
pub fn list(nodeid: u64, fh: u64, expected: Expected) -> Call {
    Call {
        nodeid,
        arg: read_in(fh, 0, expected.range.len()),
        expected,
    }
}

/// The shape of [`list`] that is answered with this many bytes, attributes too.
pub fn readdirplus_shape(size: usize) -> Shape {
    Shape {
        opcode: op::READDIRPLUS,
        ..read_shape(size)
    }
}
