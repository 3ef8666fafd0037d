//! The guest being hostile: chains, headers and indexes no driver would write, and garbage for the
//! vhost-user socket.
//!
//! A daemon may complete such a chain or ignore it. What it must not do is stop: send a good request
//! afterwards on the same queue, whose completion also proves that the hostile one was taken.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::error::GuestError;
use super::fuse::{ops, wire};
use super::queue::{RawDescriptor, Segment, write_table};
use super::request::{Lane, Reply, Request, Ticket, in_header};
use super::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use super::transport::SimGuest;

/// A guest address where there is no memory.
pub const NOWHERE: u64 = 0xdead_0000_0000;

/// The memory that a chain has several times, and how often.
const ALIASED: Segment = Segment {
    addr: 0,
    len: 32 << 20,
};
const ALIASES: u8 = 16;

/// One way of being hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hostile {
    /// Two readable descriptors that point at each other.
    Loop,
    /// A descriptor that points at itself.
    SelfLoop,
    /// A good header, then writable descriptors in a loop.
    WritableLoop,
    /// The header is where there is no memory.
    ReadableNowhere,
    /// The reply goes where there is no memory.
    WritableNowhere,
    /// `addr + len` wraps round 2^64.
    AddressWraps,
    /// A buffer that starts in memory and ends outside.
    RunsOutOfMemory,
    /// `next` is beyond the table.
    NextOutOfRange,
    /// The available ring names a descriptor beyond the table.
    HeadOutOfRange,
    /// All descriptors have length 0.
    ZeroLength,
    /// An empty descriptor between header and arguments.
    ZeroLengthBetween,
    /// An indirect table with an indirect descriptor in it.
    IndirectNested,
    /// An indirect descriptor that also has a next one.
    IndirectWithNext,
    /// An indirect table whose length is no multiple of 16.
    IndirectOddLength,
    /// An indirect table of no entries.
    IndirectEmpty,
    /// An indirect table where there is no memory.
    IndirectNowhere,
    /// An indirect table that points at its own first entry.
    IndirectLoop,
    /// A request with no room for an answer.
    OnlyReadable,
    /// No request at all.
    OnlyWritable,
    /// The room for the answer comes before the request.
    WritableFirst,
    /// A header of 20 bytes.
    ShortHeader,
    /// Room for half an answer header.
    TinyReply,
    /// `fuse_in_header.len` is this.
    HeaderLen(u32),
    /// An opcode that does not exist.
    UnknownOpcode(u32),
    /// GETATTR of a node never handed out.
    UnknownNode(u64),
    /// READ with an unknown handle.
    UnknownHandle(u64),
    /// READ of 4 GiB with room for one page.
    ReadHuge,
    /// WRITE that claims more data than it brings.
    WriteLies,
    /// LOOKUP whose name has no NUL.
    NameWithoutEnd,
    /// LOOKUP of an empty name.
    NameEmpty,
    /// LOOKUP of a name of 4096 bytes.
    NameHuge,
    /// GETATTR without its argument.
    ArgumentMissing,
    /// GETATTR, and behind it the same memory again and again: far more than its header says.
    ReadableMuch,
    /// IOCTL with an argument of half a GiB, which is the same memory again and again.
    IoctlHuge,
    /// BATCH_FORGET that claims 2^32-1 entries.
    BatchForgetLies,
    /// An INIT of version 6.
    InitOldMajor,
    /// An INIT that announces the extension and does not bring it.
    InitShort,
}

impl Hostile {
    /// Every case, with the interesting values of those that take one.
    pub const ALL: &[Self] = &[
        Self::Loop,
        Self::SelfLoop,
        Self::WritableLoop,
        Self::ReadableNowhere,
        Self::WritableNowhere,
        Self::AddressWraps,
        Self::RunsOutOfMemory,
        Self::NextOutOfRange,
        Self::HeadOutOfRange,
        Self::ZeroLength,
        Self::ZeroLengthBetween,
        Self::IndirectNested,
        Self::IndirectWithNext,
        Self::IndirectOddLength,
        Self::IndirectEmpty,
        Self::IndirectNowhere,
        Self::IndirectLoop,
        Self::OnlyReadable,
        Self::OnlyWritable,
        Self::WritableFirst,
        Self::ShortHeader,
        Self::TinyReply,
        Self::HeaderLen(0),
        Self::HeaderLen(10),
        Self::HeaderLen(41),
        Self::HeaderLen(u32::MAX),
        Self::UnknownOpcode(0),
        Self::UnknownOpcode(4242),
        Self::UnknownOpcode(u32::MAX),
        Self::UnknownNode(0),
        Self::UnknownNode(u64::MAX),
        Self::UnknownNode(0xff << 56 | 1),
        Self::UnknownNode(0x00ff_ffff_ffff_ffff),
        Self::UnknownHandle(u64::MAX),
        Self::ReadHuge,
        Self::WriteLies,
        Self::NameWithoutEnd,
        Self::NameEmpty,
        Self::NameHuge,
        Self::ArgumentMissing,
        Self::ReadableMuch,
        Self::IoctlHuge,
        Self::BatchForgetLies,
        Self::InitOldMajor,
        Self::InitShort,
    ];

    /// Whether the request is whole enough that a driver would get an errno for it, and not silence:
    /// the header can be read, and there is room for the answer's.
    pub fn deserves_an_errno(self) -> bool {
        matches!(
            self,
            Self::UnknownOpcode(_)
                | Self::UnknownNode(_)
                | Self::UnknownHandle(_)
                | Self::WriteLies
                | Self::NameWithoutEnd
                | Self::NameHuge
                | Self::ArgumentMissing
                | Self::ReadableMuch
                | Self::IoctlHuge
        )
    }
}

/// A chain made by hand. `next` counts within the chain unless `foreign_next`.
#[derive(Debug, Default)]
struct RawChain {
    descriptors: Vec<RawDescriptor>,
    foreign_next: bool,
    chunks: Vec<u64>,
    writable: Vec<Segment>,
}

impl RawChain {
    fn push(&mut self, segment: Segment, flags: u16) -> &mut Self {
        if let Some(last) = self.descriptors.last_mut() {
            last.flags |= DESC_NEXT;
        }
        let next = u16::try_from(self.descriptors.len() + 1).unwrap_or(0);
        self.descriptors.push(RawDescriptor {
            addr: segment.addr,
            len: segment.len,
            flags,
            next,
        });
        self
    }

    fn read(&mut self, segment: Segment) -> &mut Self {
        self.push(segment, 0)
    }

    fn write(&mut self, segment: Segment) -> &mut Self {
        self.writable.push(segment);
        self.push(segment, DESC_WRITE)
    }

    /// A writable descriptor that must not be read back.
    fn write_nowhere(&mut self, addr: u64, len: u32) -> &mut Self {
        self.push(Segment { addr, len }, DESC_WRITE)
    }

    fn link(&mut self, from: usize, to: u16) {
        if let Some(desc) = self.descriptors.get_mut(from) {
            desc.flags |= DESC_NEXT;
            desc.next = to;
        }
    }
}

impl SimGuest {
    /// Sends one hostile chain. [`SimGuest::try_wait`] gives what came back, if anything did.
    ///
    /// # Errors
    /// [`GuestError::TooBig`] if the guest has no room for it.
    pub fn send_hostile(&mut self, lane: Lane, hostile: Hostile) -> Result<Ticket, GuestError> {
        let mut chain = RawChain::default();
        if hostile == Hostile::HeadOutOfRange {
            let queue = &mut self.queues[lane.index()];
            let head = queue.layout().size() + 5;
            queue.add_raw(&self.ram, head, Vec::new())?;
            let ticket = self.expect_raw(lane, head, Vec::new(), Vec::new());
            self.queues[lane.index()].publish(&self.ram)?;
            return Ok(ticket);
        }
        self.build_hostile(lane, hostile, &mut chain)?;
        self.send_raw(lane, chain)
    }

    fn send_raw(&mut self, lane: Lane, chain: RawChain) -> Result<Ticket, GuestError> {
        let queue = &mut self.queues[lane.index()];
        let need = chain.descriptors.len();
        let Some(owned) = queue.reserve(need) else {
            return Err(GuestError::TooBig {
                what: "descriptors",
                need,
                limit: queue.free_descriptors(),
            });
        };
        for (i, mut desc) in chain.descriptors.into_iter().enumerate() {
            if !chain.foreign_next && desc.flags & DESC_NEXT != 0 {
                desc.next = owned.get(usize::from(desc.next)).copied().unwrap_or(desc.next);
            }
            queue.write_descriptor(&self.ram, owned[i], desc)?;
        }
        let head = owned[0];
        queue.add_raw(&self.ram, head, owned)?;
        let ticket = self.expect_raw(lane, head, chain.chunks, chain.writable);
        self.queues[lane.index()].publish(&self.ram)?;
        Ok(ticket)
    }

    fn place(&mut self, chain: &mut RawChain, bytes: &[u8]) -> Result<Segment, GuestError> {
        let segment = self.segment(bytes.len(), &mut chain.chunks)?;
        self.ram.write(segment.addr, bytes)?;
        Ok(segment)
    }

    /// A request's readable part in one buffer.
    fn message(&self, request: &Request) -> Vec<u8> {
        let mut bytes = in_header(request, self.next_unique());
        bytes.extend(request.args.iter().flatten());
        bytes.extend(&request.payload);
        bytes
    }

    fn build_hostile(
        &mut self,
        lane: Lane,
        hostile: Hostile,
        chain: &mut RawChain,
    ) -> Result<(), GuestError> {
        let good = self.message(&ops::getattr(1, None));
        let message = self.place(chain, &good)?;
        let room = self.segment(256, &mut chain.chunks)?;
        self.ram.write(room.addr, &[0; 256])?;
        match hostile {
            Hostile::Loop => {
                chain.read(message).read(message).link(1, 0);
            }
            Hostile::SelfLoop => chain.read(message).link(0, 0),
            Hostile::WritableLoop => {
                chain.read(message).write(room).write(room).link(2, 1);
            }
            Hostile::ReadableNowhere => {
                chain
                    .read(Segment {
                        addr: NOWHERE,
                        len: message.len,
                    })
                    .write(room);
            }
            Hostile::WritableNowhere => {
                chain.read(message).write_nowhere(NOWHERE, 256);
            }
            Hostile::AddressWraps => {
                chain.read(message).write_nowhere(u64::MAX - 8, 256);
            }
            Hostile::RunsOutOfMemory => {
                chain.read(message).write_nowhere(room.addr, u32::MAX);
            }
            Hostile::NextOutOfRange => {
                let beyond = self.queues[lane.index()].layout().size();
                chain.read(message).write(room);
                chain.foreign_next = true;
                chain.link(0, beyond);
            }
            Hostile::ZeroLength => {
                chain
                    .read(Segment { len: 0, ..message })
                    .write(Segment { len: 0, ..room });
            }
            Hostile::ZeroLengthBetween => {
                let (head, args) = split(message, 40);
                chain
                    .read(head)
                    .read(Segment { len: 0, ..message })
                    .read(args)
                    .write(room);
            }
            Hostile::OnlyReadable => {
                chain.read(message);
            }
            Hostile::OnlyWritable => {
                chain.write(room);
            }
            Hostile::WritableFirst => {
                chain.write(room).read(message);
            }
            Hostile::ShortHeader => {
                chain.read(Segment { len: 20, ..message }).write(room);
            }
            Hostile::TinyReply => {
                chain.read(message).write(Segment { len: 8, ..room });
            }
            Hostile::IndirectNested
            | Hostile::IndirectWithNext
            | Hostile::IndirectOddLength
            | Hostile::IndirectEmpty
            | Hostile::IndirectNowhere
            | Hostile::IndirectLoop => self.build_indirect(hostile, chain, message, room)?,
            other => {
                let bytes = self.lying_message(other);
                let message = self.place(chain, &bytes)?;
                chain.read(message);
                if matches!(other, Hostile::ReadableMuch | Hostile::IoctlHuge) {
                    for _ in 0..ALIASES {
                        chain.read(ALIASED);
                    }
                }
                chain.write(room);
            }
        }
        Ok(())
    }

    fn build_indirect(
        &mut self,
        hostile: Hostile,
        chain: &mut RawChain,
        message: Segment,
        room: Segment,
    ) -> Result<(), GuestError> {
        let entry = |s: Segment, flags, next| RawDescriptor {
            addr: s.addr,
            len: s.len,
            flags,
            next,
        };
        let table = self.segment(64, &mut chain.chunks)?;
        let mut entries = vec![entry(message, DESC_NEXT, 1), entry(room, DESC_WRITE, 0)];
        let (mut addr, mut len, mut flags) = (table.addr, 32, DESC_INDIRECT);
        match hostile {
            Hostile::IndirectNested => entries[0] = entry(table, DESC_INDIRECT | DESC_NEXT, 1),
            Hostile::IndirectWithNext => flags |= DESC_NEXT,
            Hostile::IndirectOddLength => len = 31,
            Hostile::IndirectEmpty => len = 0,
            Hostile::IndirectLoop => entries[1] = entry(room, DESC_WRITE | DESC_NEXT, 1),
            _ => addr = NOWHERE,
        }
        write_table(&self.ram, table.addr, &entries)?;
        chain.descriptors.push(RawDescriptor {
            addr,
            len,
            flags,
            next: 1,
        });
        if flags & DESC_NEXT != 0 {
            chain.descriptors.push(entry(room, DESC_WRITE, 0));
        }
        if hostile != Hostile::IndirectNowhere {
            chain.writable.push(room);
        }
        Ok(())
    }

    /// Whole chains, untrue contents.
    fn lying_message(&self, hostile: Hostile) -> Vec<u8> {
        let getattr = |node| self.message(&ops::getattr(node, None));
        match hostile {
            Hostile::HeaderLen(len) => patch(getattr(1), 0, &len.to_le_bytes()),
            Hostile::UnknownOpcode(opcode) => patch(getattr(1), 4, &opcode.to_le_bytes()),
            Hostile::UnknownNode(node) => getattr(node),
            Hostile::UnknownHandle(fh) => self.message(&ops::read(1, fh, 0, 64)),
            Hostile::ReadHuge => self.message(&ops::read(1, 0, 0, u32::MAX)),
            Hostile::WriteLies => {
                let bytes = self.message(&ops::write(1, 0, 0, b"little"));
                patch(bytes, 40 + 16, &0xffff_u32.to_le_bytes())
            }
            Hostile::NameWithoutEnd => self.message(&Request::new(wire::op::LOOKUP, 1).arg(*b"no end")),
            Hostile::ReadableMuch => getattr(1),
            Hostile::IoctlHuge => {
                // `fuse_ioctl_in`: `in_size` is the last but one.
                let mut args = [0; 32];
                args[24..28].copy_from_slice(&(u32::from(ALIASES) * ALIASED.len).to_le_bytes());
                self.message(&Request::new(wire::op::IOCTL, 1).arg(args))
            }
            Hostile::NameEmpty => self.message(&ops::lookup(1, b"")),
            Hostile::NameHuge => self.message(&ops::lookup(1, &[b'n'; 4000])),
            Hostile::ArgumentMissing => self.message(&Request::new(wire::op::GETATTR, 1)),
            Hostile::BatchForgetLies => {
                let mut request = Request::new(42, 0);
                request.args.push([0xff; 8].to_vec());
                self.message(&request)
            }
            Hostile::InitOldMajor => patch(self.message(&ops::init_linux_6_1()), 40, &6_u32.to_le_bytes()),
            _ => {
                let mut request = ops::init_linux_6_1();
                request.args[0].truncate(16);
                self.message(&request)
            }
        }
    }

    /// Moves `avail.idx` on by more than the queue has entries, kicks, and moves it back.
    ///
    /// # Errors
    /// [`GuestError::Memory`], [`GuestError::Os`].
    pub fn jump_avail_index(&mut self, lane: Lane, by: u16) -> Result<(), GuestError> {
        let queue = &mut self.queues[lane.index()];
        let (at, honest) = (queue.layout().avail_idx(), queue.next_avail());
        self.ram.store_u16(at, honest.wrapping_add(by))?;
        queue.kick_now()?;
        self.ram.store_u16(at, honest)
    }

    /// Writes bytes to the vhost-user socket behind the frontend's back.
    ///
    /// # Errors
    /// What write(2) said; EPIPE if the daemon has closed it.
    pub fn send_garbage(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&self.link.stream).write_all(bytes)
    }
}

/// The errno in a hostile chain's answer, if it is an answer.
pub fn errno_of(reply: &Reply) -> Option<i32> {
    let field = |at: usize| {
        reply
            .body
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(i32::from_le_bytes)
    };
    (field(0)? >= 16).then(|| field(4).map(|e| -e)).flatten()
}

fn split(segment: Segment, at: u32) -> (Segment, Segment) {
    let head = Segment { len: at, ..segment };
    (
        head,
        Segment {
            addr: segment.addr + u64::from(at),
            len: segment.len - at,
        },
    )
}

fn patch(mut bytes: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Byte sequences that are no vhost-user session, each with a name for the test's message.
pub fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let message = |request: u32, flags: u32, size: u32, body: &[u8]| {
        let mut bytes: Vec<u8> = [request, flags, size]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        bytes.extend(body);
        bytes
    };
    let noise = (0_u32..4096)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    vec![
        ("nothing", Vec::new()),
        ("half a header", vec![1, 0, 0, 0, 1]),
        ("noise", noise),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("an unknown request", message(9999, 1, 0, &[])),
        ("the wrong version", message(1, 3, 0, &[])),
        ("a body of 4 GiB", message(2, 1, u32::MAX, &[0; 64])),
        ("a body that never comes", message(2, 1, 8, &[])),
        (
            "a memory table without descriptors",
            message(5, 1, 40, &[0xff; 40]),
        ),
        ("a memory table of 2^32-1 regions", message(5, 1, 8, &[0xff; 8])),
        ("a kick without a descriptor", message(12, 1, 8, &[0; 8])),
        ("a ring that does not exist", message(8, 1, 8, &[0xff; 8])),
        ("features nobody offered", message(2, 1, 8, &[0xff; 8])),
        (
            "a ring started without memory",
            message(18, 1, 8, &[1, 0, 0, 0, 1, 0, 0, 0]),
        ),
    ]
}

/// Connects, writes `bytes`, closes the writing side, and waits until the daemon closes or `patience`
/// has passed; true if it closed.
///
/// # Errors
/// What connect(2) said. That the daemon closes early is no error.
pub fn garbage_session(socket: &Path, bytes: &[u8], patience: Duration) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    if stream.write_all(bytes).is_err() || stream.shutdown(std::net::Shutdown::Write).is_err() {
        return Ok(true);
    }
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(e) => {
                return Ok(!matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ));
            }
        }
    }
}
