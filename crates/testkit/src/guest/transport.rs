//! The guest itself: takes requests, puts them on the rings, sleeps on the call eventfds, returns replies.
//!
//! Owns the memory, the queues and the connection. Never interprets a FUSE body; it only writes the
//! request header and reads the reply header, because those say which request a reply belongs to.
//! Every wait has a deadline, so that a stuck daemon fails a test instead of hanging it, and a
//! completion without its interrupt is an error of its own. Next: [`super::fuse`].

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::deadline::Deadline;
use super::error::GuestError;
use super::handshake::Link;
pub use super::handshake::Negotiated;
use super::mem::GuestRam;
use super::queue::{Segment, SplitQueue};
use super::request::{Lane, Reply, Request, Ticket};
use super::request::{OUT_HEADER, in_header, word};

/// How the guest is built.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Request queues beside the hiprio queue.
    pub request_queues: u16,
    /// Descriptors of each queue; a power of two.
    pub queue_size: u16,
    /// Bytes of memory for request and reply buffers.
    pub memory: usize,
    /// Bytes of one data descriptor. Linux uses pages; larger makes fewer descriptors.
    pub segment: usize,
    /// Use EVENT_IDX if it is offered.
    pub event_idx: bool,
    /// Use indirect descriptors if they are offered.
    pub indirect: bool,
    /// Send the memory with ADD_MEM_REG if that is offered, else with SET_MEM_TABLE.
    pub memory_slots: bool,
    /// How long each step may take before it counts as stuck.
    pub timeout: Duration,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            request_queues: 1,
            queue_size: 1024,
            memory: 128 << 20,
            segment: 4096,
            event_idx: true,
            indirect: true,
            memory_slots: true,
            timeout: Duration::from_secs(20),
        }
    }
}

#[derive(Debug)]
struct Pending {
    lane: Lane,
    head: u16,
    ticket: Ticket,
    chunks: Vec<u64>,
    writable: Vec<Segment>,
    kind: PendingKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PendingKind {
    Answered,
    Unanswered,
    /// A hand-made chain: whatever came back is handed on as it is.
    Raw,
}

/// The simulated guest.
#[derive(Debug)]
pub struct SimGuest {
    config: GuestConfig,
    socket: PathBuf,
    pub(super) link: Link,
    pub(super) ram: GuestRam,
    pub(super) queues: Vec<SplitQueue>,
    negotiated: Negotiated,
    epoll: Epoll,
    pending: Vec<Pending>,
    done: VecDeque<(Ticket, Reply)>,
    last_unique: u64,
}

/// The epoll tag of the vhost-user socket; queues are tagged with their index.
const SOCKET_TAG: u64 = u64::MAX;

impl SimGuest {
    /// Connects to a backend and starts all queues, up to where a driver would send FUSE_INIT.
    ///
    /// # Errors
    /// Any [`GuestError`]; in particular [`GuestError::TimedOut`] naming the message that got no answer.
    pub fn connect(socket: &Path, config: GuestConfig) -> Result<Self, GuestError> {
        let count = u64::from(config.request_queues) + 1;
        let mut reserved = 0;
        let mut bases = Vec::new();
        for _ in 0..count {
            bases.push(reserved);
            reserved =
                (reserved + SplitQueue::footprint(reserved, config.queue_size)?).next_multiple_of(4096);
        }
        let reserved = usize::try_from(reserved).unwrap_or(usize::MAX);
        let ram = GuestRam::new(reserved, config.memory, config.segment)?;
        let mut link = Link::connect(socket, config.timeout, count)?;
        let negotiated = link.negotiate(&config, &ram)?;
        let queues = bases
            .into_iter()
            .map(|b| {
                SplitQueue::new(
                    b,
                    config.queue_size,
                    negotiated.indirect(),
                    negotiated.event_idx(),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let epoll = Epoll::new().map_err(GuestError::os("epoll_create1"))?;
        let mut guest = Self {
            config,
            socket: socket.to_owned(),
            link,
            ram,
            queues,
            negotiated,
            epoll,
            pending: Vec::new(),
            done: VecDeque::new(),
            last_unique: 0,
        };
        guest.watch()?;
        guest.start_queues()?;
        Ok(guest)
    }

    fn watch(&self) -> Result<(), GuestError> {
        let add = |fd, events, tag| {
            self.epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(events, tag))
                .map_err(GuestError::os("epoll_ctl"))
        };
        for (index, queue) in self.queues.iter().enumerate() {
            add(queue.call_fd().as_raw_fd(), EventSet::IN, index as u64)?;
        }
        add(self.link.stream.as_raw_fd(), EventSet::READ_HANG_UP, SOCKET_TAG)
    }

    fn start_queues(&mut self) -> Result<(), GuestError> {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.reset(&self.ram)?;
            self.link.start_queue(index, queue, &self.ram)?;
        }
        self.link.settle()
    }

    /// Restarts the guest on the same connection: stops every ring, forgets all requests, and sets the
    /// rings up again from zero. The guest then sends FUSE_INIT a second time.
    ///
    /// # Errors
    /// Any [`GuestError`].
    pub fn reboot(&mut self) -> Result<(), GuestError> {
        for index in 0..self.queues.len() {
            self.link.stop_queue(index)?;
        }
        for pending in self.pending.drain(..) {
            self.ram.give_back(pending.chunks);
        }
        self.done.clear();
        self.start_queues()
    }

    /// Leaves the connection and makes a new one to the same socket: a VMM that was restarted.
    ///
    /// # Errors
    /// Any [`GuestError`].
    pub fn reconnect(self) -> Result<Self, GuestError> {
        let (socket, config) = (self.socket.clone(), self.config.clone());
        drop(self);
        Self::connect(&socket, config)
    }

    /// How it was built.
    pub fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// What was negotiated.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The vhost-user socket's connection.
    pub fn stream(&self) -> &UnixStream {
        &self.link.stream
    }

    /// The most pages a request may carry: Linux leaves four descriptors for headers and arguments.
    pub fn max_data_segments(&self) -> usize {
        self.queues
            .iter()
            .map(SplitQueue::longest_chain)
            .min()
            .unwrap_or(0)
            .saturating_sub(4)
            .min(256)
    }

    /// How often the daemon was kicked on a queue.
    pub fn kicks(&self, lane: Lane) -> u64 {
        self.queues.get(lane.index()).map_or(0, SplitQueue::kicks)
    }

    /// Memory and one queue, for a driver that works on the rings itself while nothing else is in flight.
    pub fn parts(&mut self, lane: Lane) -> Option<(&mut GuestRam, &mut SplitQueue)> {
        let queue = self.queues.get_mut(lane.index())?;
        Some((&mut self.ram, queue))
    }

    /// Requests the daemon has not answered yet.
    pub fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Hands a request to the daemon. If the ring or the memory is full it first waits for replies
    /// (which are kept for [`Self::wait`]).
    ///
    /// # Errors
    /// Any [`GuestError`].
    pub fn submit(&mut self, request: &Request) -> Result<Ticket, GuestError> {
        let ticket = self.stage(request)?;
        self.publish(request.lane)?;
        Ok(ticket)
    }

    /// Hands many requests to the daemon at once, with one kick per queue.
    ///
    /// # Errors
    /// Any [`GuestError`].
    pub fn submit_batch(&mut self, requests: &[Request]) -> Result<Vec<Ticket>, GuestError> {
        let tickets = requests
            .iter()
            .map(|r| self.stage(r))
            .collect::<Result<Vec<_>, _>>()?;
        for index in 0..self.queues.len() {
            self.queues[index].publish(&self.ram)?;
        }
        Ok(tickets)
    }

    fn publish(&mut self, lane: Lane) -> Result<(), GuestError> {
        self.queues[lane.index()].publish(&self.ram)
    }

    fn stage(&mut self, request: &Request) -> Result<Ticket, GuestError> {
        self.last_unique += 2; // Linux counts `unique` by two.
        let ticket = Ticket(self.last_unique);
        let header = in_header(request, ticket.0);
        let readable: Vec<&[u8]> = std::iter::once(header.as_slice())
            .chain(request.args.iter().map(Vec::as_slice))
            .chain((!request.extensions.is_empty()).then_some(request.extensions.as_slice()))
            .collect();
        let room = [
            if request.answered { OUT_HEADER } else { 0 },
            request.reply_args,
            request.reply_data,
        ];
        let chunk = self.ram.chunk_size();
        let pieces = |n: usize| n.div_ceil(chunk);
        let need = readable.iter().map(|b| pieces(b.len())).sum::<usize>()
            + pieces(request.payload.len())
            + room.iter().map(|n| pieces(*n)).sum::<usize>();
        if need > self.ram.chunk_count() {
            return Err(GuestError::TooBig {
                what: "chunks of memory",
                need,
                limit: self.ram.chunk_count(),
            });
        }
        let deadline = Deadline::after(self.config.timeout);
        let index = request.lane.index();
        if index >= self.queues.len() {
            return Err(GuestError::TooFewQueues {
                offered: self.queues.len() as u64,
                wanted: index as u64 + 1,
            });
        }
        loop {
            if self.ram.free_chunks() >= need
                && self.queues[index].free_descriptors() >= self.queues[index].cost(need)
            {
                break;
            }
            // Requests staged earlier may not be published yet; nothing would ever complete.
            self.publish(request.lane)?;
            self.pump(deadline, "room for one more request")?;
        }
        let mut chunks = Vec::with_capacity(need);
        let mut segments_in = Vec::new();
        for bytes in readable.into_iter().chain([request.payload.as_slice()]) {
            for part in bytes.chunks(chunk) {
                let segment = self.segment(part.len(), &mut chunks)?;
                self.ram.write(segment.addr, part)?;
                segments_in.push(segment);
            }
        }
        let mut segments_out = Vec::new();
        for length in room {
            let mut left = length;
            while left > 0 {
                let segment = self.segment(left.min(chunk), &mut chunks)?;
                left -= segment.len as usize;
                segments_out.push(segment);
            }
        }
        let Some(head) = self.queues[index].add(&self.ram, &segments_in, &segments_out)? else {
            return Err(GuestError::TooBig {
                what: "descriptors",
                need,
                limit: self.queues[index].free_descriptors(),
            });
        };
        self.pending.push(Pending {
            lane: request.lane,
            head,
            ticket,
            chunks,
            writable: segments_out,
            kind: if request.answered {
                PendingKind::Answered
            } else {
                PendingKind::Unanswered
            },
        });
        Ok(ticket)
    }

    pub(super) fn segment(&mut self, len: usize, chunks: &mut Vec<u64>) -> Result<Segment, GuestError> {
        let (Some(addr), Ok(len)) = (self.ram.take(), u32::try_from(len)) else {
            return Err(GuestError::TooBig {
                what: "chunks of memory",
                need: 1,
                limit: 0,
            });
        };
        chunks.push(addr);
        Ok(Segment { addr, len })
    }

    /// Registers a hand-made chain so that its completion is accepted.
    pub(super) fn expect_raw(
        &mut self,
        lane: Lane,
        head: u16,
        chunks: Vec<u64>,
        writable: Vec<Segment>,
    ) -> Ticket {
        self.last_unique += 2;
        let ticket = Ticket(self.last_unique);
        self.pending.push(Pending {
            lane,
            head,
            ticket,
            chunks,
            writable,
            kind: PendingKind::Raw,
        });
        ticket
    }

    /// The `unique` the next request will carry.
    pub fn next_unique(&self) -> u64 {
        self.last_unique + 2
    }

    /// Waits for one request's reply. Others that finish meanwhile are kept.
    ///
    /// # Errors
    /// [`GuestError::TimedOut`], [`GuestError::Disconnected`], [`GuestError::UnknownTicket`], or what
    /// the daemon did wrong.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Reply, GuestError> {
        let deadline = Deadline::after(self.config.timeout);
        loop {
            if let Some(at) = self.done.iter().position(|(t, _)| *t == ticket) {
                return Ok(self.done.remove(at).map(|(_, reply)| reply).unwrap_or_default());
            }
            if !self.pending.iter().any(|p| p.ticket == ticket) {
                return Err(GuestError::UnknownTicket(ticket.0));
            }
            self.pump(deadline, "the reply to a request")?;
        }
    }

    /// Waits for whichever reply comes next, in the order of the used ring.
    ///
    /// # Errors
    /// As [`Self::wait`]; [`GuestError::UnknownTicket`] if nothing is outstanding.
    pub fn wait_any(&mut self) -> Result<(Ticket, Reply), GuestError> {
        let deadline = Deadline::after(self.config.timeout);
        loop {
            if let Some(first) = self.done.pop_front() {
                return Ok(first);
            }
            if self.pending.is_empty() {
                return Err(GuestError::UnknownTicket(0));
            }
            self.pump(deadline, "any reply")?;
        }
    }

    /// Takes a reply that has already arrived, without waiting.
    ///
    /// # Errors
    /// What the daemon did wrong.
    pub fn try_wait(&mut self, ticket: Ticket) -> Result<Option<Reply>, GuestError> {
        self.collect()?;
        let at = self.done.iter().position(|(t, _)| *t == ticket);
        Ok(at.and_then(|at| self.done.remove(at)).map(|(_, reply)| reply))
    }

    /// Sleeps until at least one more reply has been collected.
    fn pump(&mut self, deadline: Deadline, what: &'static str) -> Result<(), GuestError> {
        loop {
            if self.collect()? > 0 {
                return Ok(());
            }
            let mut ready = false;
            for queue in &self.queues {
                ready |= queue.arm(&self.ram)?;
            }
            if ready {
                continue;
            }
            let mut events = [EpollEvent::default(); 8];
            let slept = deadline.remaining(what).and_then(|left| {
                let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
                match self.epoll.wait(millis, &mut events) {
                    Ok(0) => Err(deadline.missed(what)),
                    Ok(n) => Ok(n),
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(0),
                    Err(e) => Err(GuestError::os("epoll_wait")(e)),
                }
            });
            match slept {
                Ok(n) => self.wake(&events[..n])?,
                Err(error) => {
                    // It is in the ring, but nobody told us: that is another defect than being slow.
                    let silent = self.collect()?;
                    return Err(if silent > 0 {
                        GuestError::Violation {
                            what: "completed without the interrupt asked for",
                            value: silent,
                        }
                    } else {
                        error
                    });
                }
            }
        }
    }

    fn wake(&mut self, events: &[EpollEvent]) -> Result<(), GuestError> {
        let mut gone = false;
        for event in events {
            if event.data() == SOCKET_TAG {
                gone = true;
            } else if let Some(queue) = usize::try_from(event.data())
                .ok()
                .and_then(|i| self.queues.get(i))
            {
                // Only the wake-up matters; another event may have drained it.
                let _count = queue.call_fd().read();
            }
        }
        // What was completed before the daemon left is still valid.
        if gone && self.collect()? == 0 {
            Err(GuestError::Disconnected)
        } else {
            Ok(())
        }
    }

    /// Takes everything off the used rings; how many there were.
    fn collect(&mut self) -> Result<u64, GuestError> {
        let mut count = 0;
        for index in 0..self.queues.len() {
            while let Some((head, used_len)) = self.queues[index].reap(&self.ram)? {
                let at = self
                    .pending
                    .iter()
                    .position(|p| p.lane.index() == index && p.head == head);
                let Some(pending) = at.map(|at| self.pending.swap_remove(at)) else {
                    return Err(GuestError::Violation {
                        what: "used an unknown chain",
                        value: head.into(),
                    });
                };
                let reply = self.read_reply(&pending, used_len);
                self.ram.give_back(pending.chunks);
                self.done.push_back((pending.ticket, reply?));
                count += 1;
            }
        }
        Ok(count)
    }

    fn read_reply(&self, pending: &Pending, used_len: u32) -> Result<Reply, GuestError> {
        let unique = pending.ticket.0;
        let bad = |what, value| GuestError::BadReply { unique, what, value };
        match pending.kind {
            PendingKind::Unanswered => Ok(Reply {
                error: 0,
                body: Vec::new(),
                used_len,
            }),
            PendingKind::Raw => {
                let body = self.gather(&pending.writable, 0, usize::MAX)?;
                Ok(Reply {
                    error: 0,
                    body,
                    used_len,
                })
            }
            PendingKind::Answered => {
                let header = self.gather(&pending.writable, 0, OUT_HEADER)?;
                let len = word(&header, 0);
                let error = i32::from_le_bytes(word(&header, 4).to_le_bytes());
                let echoed = u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32;
                if echoed != unique {
                    return Err(bad("the reply names another request", echoed));
                }
                let room: usize = pending.writable.iter().map(|s| s.len as usize).sum();
                let len_usize = len as usize;
                if len_usize < OUT_HEADER || len_usize > room {
                    return Err(bad("the reply's length does not fit the request", len.into()));
                }
                if !(-4095..=0).contains(&error) {
                    return Err(bad(
                        "the reply's error is no negated errno",
                        u64::from(error.unsigned_abs()),
                    ));
                }
                let body = self.gather(&pending.writable, OUT_HEADER, len_usize - OUT_HEADER)?;
                Ok(Reply {
                    error,
                    body,
                    used_len,
                })
            }
        }
    }

    /// Reads `len` bytes (or all) of a chain's writable part, after the first `skip`.
    fn gather(&self, segments: &[Segment], skip: usize, len: usize) -> Result<Vec<u8>, GuestError> {
        let mut out = Vec::new();
        let mut skip = skip;
        for segment in segments {
            let size = segment.len as usize;
            let from = skip.min(size);
            skip -= from;
            let take = (size - from).min(len - out.len());
            let start = out.len();
            out.resize(start + take, 0);
            self.ram.read(segment.addr + from as u64, &mut out[start..])?;
        }
        Ok(out)
    }
}
