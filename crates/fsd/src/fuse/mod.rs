//! From a descriptor chain to a FUSE request and its answer.
//!
//! `direct.rs` answers what guests ask most, `unlisted.rs` what the library has no case for, `between.rs` what leads from
//! one mount to another, `absent.rs` what a mount has no answer to; fuse-backend-rs decodes and dispatches the rest. This module stands between them and a guest
//! that may send anything. It reads a request once, so that what is looked at is what is done (`request.rs`), refuses
//! what must not get further (`screen.rs`), makes sure that every request that expects an answer gets one (`reply.rs`),
//! that a panic costs one request, and that a guest may start over with FUSE_INIT (`init.rs`). FUSE protocol: Linux's
//! `include/uapi/linux/fuse.h`, 7.33.

mod absent;
mod between;
mod buffers;
mod direct;
mod extensions;
mod forget;
mod init;
mod listing;
mod open;
mod outcome;
mod reply;
mod request;
mod screen;
mod seek;
mod unlisted;
mod xattr;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::FsOptions;
use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, Reader, VirtioFsWriter};
use rustix::io::Errno;

use self::init::{CREATE_SUPP_GROUP, Offer};
pub(crate) use self::request::Scratch;
use self::request::{Request, opcode};
use self::screen::Verdict;
use crate::inflight::Slot;
use crate::metrics::Answered;
use crate::namespace::Shares;
use crate::passthrough::with_groups;
use crate::sys::mapped::lost_pages;
use crate::transport::Chain;

#[cfg(test)]
mod tests;

/// The answer to a request that failed, where it does not go into a guest's memory.
pub(crate) fn error_reply(unique: u64, errno: Errno) -> [u8; 16] {
    reply::header(reply::HEADER_LEN, unique, -errno.raw_os_error())
}

/// What FUSE_INIT agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitRecord {
    /// What the guest can do.
    pub(crate) in_flags: u64,
    /// What is used.
    pub(crate) out_flags: u64,
}

/// The result of FUSE_INIT, shared by the server that makes it and the session that keeps it.
pub(crate) type Negotiated = Arc<Mutex<Option<InitRecord>>>;

/// A request that was run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    /// Bytes written for the guest.
    pub(crate) written: u32,
    /// What is counted of it; nothing of what is no request.
    pub(crate) answered: Option<Answered>,
}

/// Serves FUSE requests on a namespace of mounts.
pub(crate) struct FuseServer {
    server: Server<Arc<Vfs>>,
    vfs: Arc<Vfs>,
    shares: Arc<Shares>,
    negotiated: Negotiated,
    /// What this frontend's guest can do was said. A guest may begin anew as often as it likes.
    introduced: AtomicBool,
}

impl std::fmt::Debug for FuseServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseServer")
            .field("negotiated", &self.negotiated)
            .finish_non_exhaustive()
    }
}

impl FuseServer {
    pub(crate) fn new(vfs: Arc<Vfs>, shares: Arc<Shares>) -> Self {
        Self {
            server: Server::new(Arc::clone(&vfs)),
            vfs,
            shares,
            negotiated: Negotiated::default(),
            introduced: AtomicBool::new(false),
        }
    }

    pub(crate) fn negotiated(&self) -> Negotiated {
        Arc::clone(&self.negotiated)
    }

    /// The frontend is gone, and with it all that [`FuseServer::start_over`] forgets.
    pub(crate) fn reset(&self) {
        self.start_over();
        self.introduced.store(false, Ordering::Relaxed);
    }

    /// Forgets the guest's session: open handles, looked-up inodes and what FUSE_INIT agreed on. Mounts stay.
    fn start_over(&self) {
        self.vfs.destroy();
        *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs one request.
    pub(crate) fn serve(&self, chain: &Chain<'_>, slot: &Slot<'_>, scratch: &mut Scratch) -> Served {
        let Some(request) = Request::read(chain, scratch) else {
            // Not even a header: there is no `unique` to answer to.
            return Served {
                written: reply::error(chain, 0, Errno::IO),
                answered: None,
            };
        };
        let began = slot.begin(request.nodeid, request.opcode, request.unique);
        let written = match screen::screen(&request) {
            Verdict::Pass => self.dispatch(&request, chain),
            Verdict::Refuse(errno) => reply::error(chain, request.unique, errno),
            Verdict::Drop => 0,
        };
        slot.end();
        Served {
            written,
            answered: Some(outcome::of(&request, chain, written, began)),
        }
    }

    fn dispatch(&self, request: &Request<'_>, chain: &Chain<'_>) -> u32 {
        if request.opcode == opcode::INIT {
            return self
                .init(request, chain)
                .unwrap_or_else(|errno| reply::error(chain, request.unique, errno));
        }
        if request.opcode == opcode::DESTROY {
            self.start_over();
            return reply::ok(chain, request.unique);
        }
        self.handle(request, chain)
    }

    fn init(&self, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32, Errno> {
        let offer = Offer::read(request)?;
        if offer.is_ahead() {
            return Ok(offer.reply(None, request.unique, chain));
        }
        // A guest that reboots without DESTROY starts over on the same connection.
        self.start_over();
        let ours = self.vfs.init(FsOptions::all()).map_err(|e| direct::errno(&e))?;
        let record = offer.agree(ours);
        let uses = |flag: u64| record.out_flags & flag != 0;
        let common = self.shares.common();
        common
            .knows_groups
            .store(uses(CREATE_SUPP_GROUP), Ordering::Relaxed);
        common
            .knows_submounts
            .store(uses(FsOptions::SUBMOUNTS.bits()), Ordering::Relaxed);
        if !self.introduced.swap(true, Ordering::Relaxed) {
            tracing::info!(
                ?offer,
                out_flags = format_args!("{:#x}", record.out_flags),
                "FUSE_INIT"
            );
        }
        *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
        Ok(offer.reply(Some(&record), request.unique, chain))
    }

    fn handle(&self, request: &Request<'_>, chain: &Chain<'_>) -> u32 {
        // The state behind `server` is guarded by its own locks; a request that panicked is answered with EIO.
        let lost = lost_pages();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if request.extensions == 0 {
                return self.call(request, chain);
            }
            with_groups(&extensions::groups(request), || self.call(request, chain))
        }));
        match outcome {
            // Some of what the answer was made of may have been missing.
            Ok(Some(_)) if lost_pages() != lost => reply::error(chain, request.unique, Errno::IO),
            Ok(Some(written)) => {
                let written = u32::try_from(written).unwrap_or(u32::MAX);
                let is_absent =
                    written == reply::HEADER_LEN && reply::errno(chain) == Errno::NOSYS.raw_os_error();
                let instead = is_absent.then(|| absent::answer(&self.shares, request, chain));
                instead.flatten().unwrap_or(written)
            }
            Ok(None) if reply::is_answered(chain, request.unique) => reply::HEADER_LEN,
            Ok(None) => reply::error(chain, request.unique, Errno::IO),
            Err(_) => {
                tracing::error!(
                    opcode = request.opcode,
                    nodeid = request.nodeid,
                    "a request failed unexpectedly"
                );
                reply::error(chain, request.unique, Errno::IO)
            }
        }
    }

    fn call(&self, request: &Request<'_>, chain: &Chain<'_>) -> Option<usize> {
        if forget::forget(&self.vfs, &self.shares, request) {
            return Some(0);
        }
        if let Some(written) = direct::serve(&*self.vfs, request, chain) {
            return usize::try_from(written).ok();
        }
        let answered = match request.opcode {
            opcode::OPEN => Some(open::open(&self.vfs, &self.shares, request, chain)),
            opcode::LSEEK => Some(seek::seek(&self.vfs, &self.shares, request, chain)),
            _ => None,
        };
        if let Some(answered) = answered {
            let written = answered.unwrap_or_else(|errno| reply::error(chain, request.unique, errno));
            return usize::try_from(written).ok();
        }
        let shares_own = unlisted::serve(&self.shares, request, chain)
            .or_else(|| xattr::serve(&self.shares, request, chain));
        if let Some(written) = shares_own {
            return usize::try_from(written).ok();
        }
        if let Err(errno) = between::check(&self.vfs, request) {
            return usize::try_from(reply::error(chain, request.unique, errno)).ok();
        }
        // The library reads the copy, too. For its answer it follows the descriptors once more: where that leads the
        // guest may choose.
        let mut raw = request.raw().to_vec();
        let reader = Reader::from_fuse_buffer(FuseBuf::new(&mut raw)).ok()?;
        let writer = VirtioFsWriter::new(chain.memory(), chain.descriptors()?).ok()?;
        self.server.handle_message(reader, writer.into(), None, None).ok()
    }
}
