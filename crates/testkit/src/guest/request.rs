//! A FUSE request and its reply as bytes: what [`super::transport`] carries. No meaning beyond the headers.

/// Bytes of a FUSE request header (`fuse_in_header`).
pub const IN_HEADER: usize = 40;
/// Bytes of a FUSE reply header (`fuse_out_header`).
pub const OUT_HEADER: usize = 16;

/// Which queue a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The hiprio queue: FORGET.
    Hiprio,
    /// Request queue `n`, from 0.
    Request(u16),
}

impl Lane {
    pub(super) fn index(self) -> usize {
        match self {
            Self::Hiprio => 0,
            Self::Request(n) => usize::from(n) + 1,
        }
    }
}

/// A FUSE request as bytes, with room for its reply.
#[derive(Debug, Clone)]
pub struct Request {
    /// The queue.
    pub lane: Lane,
    /// `fuse_in_header.opcode`.
    pub opcode: u32,
    /// `fuse_in_header.nodeid`.
    pub nodeid: u64,
    /// Caller: uid, gid, pid.
    pub caller: (u32, u32, u32),
    /// The arguments after the header, each in descriptors of its own as Linux sends them.
    pub args: Vec<Vec<u8>>,
    /// Data after the arguments, in page-sized descriptors (WRITE).
    pub payload: Vec<u8>,
    /// Extensions at the end (`fuse_ext_header`), a multiple of 8 bytes; not together with a payload.
    pub extensions: Vec<u8>,
    /// Whether a reply header is expected (not for FORGET).
    pub answered: bool,
    /// Room for the fixed part of the reply's body, in one piece.
    pub reply_args: usize,
    /// Room for the reply's data, in page-sized descriptors (READ, READDIR).
    pub reply_data: usize,
}

impl Request {
    /// A request on the first request queue, with an answer that has no body.
    pub fn new(opcode: u32, nodeid: u64) -> Self {
        Self {
            lane: Lane::Request(0),
            opcode,
            nodeid,
            caller: (0, 0, 1),
            args: Vec::new(),
            payload: Vec::new(),
            extensions: Vec::new(),
            answered: true,
            reply_args: 0,
            reply_data: 0,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.args.push(bytes.into());
        self
    }

    /// The same request on another queue.
    #[must_use]
    pub fn on(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }
}

/// Names a request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

impl Ticket {
    /// The `unique` of its header.
    pub fn unique(self) -> u64 {
        self.0
    }
}

/// What came back for a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// `fuse_out_header.error`: 0 or a negated errno.
    pub error: i32,
    /// What followed the header, as long as the header says.
    pub body: Vec<u8>,
    /// The length in the used ring. Linux ignores it, and so does nydusd.
    pub used_len: u32,
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A `fuse_in_header`; its `len` is that of the whole readable part.
pub(super) fn in_header(request: &Request, unique: u64) -> Vec<u8> {
    let len = IN_HEADER
        + request.args.iter().map(Vec::len).sum::<usize>()
        + request.payload.len()
        + request.extensions.len();
    let mut out = Vec::with_capacity(IN_HEADER);
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(request.opcode.to_le_bytes());
    out.extend(unique.to_le_bytes());
    out.extend(request.nodeid.to_le_bytes());
    out.extend(request.caller.0.to_le_bytes());
    out.extend(request.caller.1.to_le_bytes());
    out.extend(request.caller.2.to_le_bytes());
    let extensions = u16::try_from(request.extensions.len() / 8).unwrap_or(u16::MAX);
    out.extend(u32::from(extensions).to_le_bytes());
    out
}
