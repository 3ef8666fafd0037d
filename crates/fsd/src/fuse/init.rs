//! FUSE_INIT: what a guest can do, and what of that is used.
//!
//! Answered here, because the library's VFS keeps what was agreed on as what it offers the next time: firmware, or an
//! older kernel, would leave less to every guest after it. So the VFS is told of a guest that can do everything, and
//! what this one can is looked at here. Otherwise what is answered is what the library's server answers, byte for byte
//! (the tests compare), with one flag more: supplementary groups, of which it knows nothing.

use fuse_backend_rs::abi::fuse_abi::{FsOptions, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::InitRecord;
use super::reply::{self, HEADER_LEN};
use super::request::{IN_HEADER_LEN, Request, u32_at};
use crate::transport::Chain;

/// `FUSE_CREATE_SUPP_GROUP`: groups are sent along where something is made. The library has no name for it.
pub(super) const CREATE_SUPP_GROUP: u64 = 1 << 34;
/// The largest WRITE, and READ, of a guest that can send so many pages at once.
const MOST_PAGES: u16 = 256;
const PAGE_BYTES: u32 = 4096;
/// Size of `fuse_init_in` before there were upper flags, in bytes.
const OLD_INIT_IN: usize = 16;

/// `fuse_init_in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

impl Offer {
    /// Reads it.
    ///
    /// # Errors
    /// `IO` if it is too short, `PROTO` if it is of before FUSE 7.
    pub(super) fn read(request: &Request<'_>) -> Result<Self, Errno> {
        let raw: [u8; 16] = request.argument()?;
        let major = u32_at(&raw, 0);
        if major < KERNEL_VERSION {
            return Err(Errno::PROTO);
        }
        let mut flags = u64::from(u32_at(&raw, 12));
        if flags & FsOptions::INIT_EXT.bits() != 0 {
            let upper = request.part(IN_HEADER_LEN as usize + OLD_INIT_IN, 4)?;
            flags |= u64::from(u32_at(upper, 0)) << 32;
        }
        Ok(Self {
            major,
            minor: u32_at(&raw, 4),
            max_readahead: u32_at(&raw, 8),
            flags,
        })
    }

    /// Whether it is of a FUSE that is not to come. Its guest is told of ours, and tries again.
    pub(super) fn is_ahead(&self) -> bool {
        self.major > KERNEL_VERSION
    }

    /// What is used of it, where the file system can do `ours`.
    pub(super) fn agree(&self, ours: FsOptions) -> InitRecord {
        InitRecord {
            in_flags: self.flags,
            out_flags: self.flags & (ours.bits() | CREATE_SUPP_GROUP),
        }
    }

    /// Answers with what is used, or with our version only; the number of bytes written.
    pub(super) fn reply(&self, agreed: Option<&InitRecord>, unique: u64, chain: &Chain<'_>) -> u32 {
        let mut out = InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            ..InitOut::default()
        };
        let mut len = size_of::<InitOut>();
        if let Some(record) = agreed {
            let uses = |option: FsOptions| record.out_flags & option.bits() != 0;
            out.max_readahead = self.max_readahead;
            [out.flags, out.flags2] = halves(record.out_flags);
            out.max_background = u16::MAX;
            out.congestion_threshold = u16::MAX / 4 * 3;
            // In nanoseconds.
            out.time_gran = 1;
            out.max_pages = if uses(FsOptions::MAX_PAGES) { MOST_PAGES } else { 0 };
            out.max_write = if uses(FsOptions::BIG_WRITES | FsOptions::MAX_PAGES) {
                u32::from(MOST_PAGES) * PAGE_BYTES
            } else {
                PAGE_BYTES
            };
            // `FUSE_COMPAT_INIT_OUT_SIZE`, `FUSE_COMPAT_22_INIT_OUT_SIZE`.
            len = match self.minor {
                ..5 => 8,
                5..23 => 24,
                _ => len,
            };
        }
        let whole = HEADER_LEN as usize + len;
        let head = reply::header(u32::try_from(whole).unwrap_or(HEADER_LEN), unique, 0);
        reply::put(chain, &[&head, &out.as_slice()[..len]].concat())
    }
}

fn halves(flags: u64) -> [u32; 2] {
    [flags & u64::from(u32::MAX), flags >> 32].map(|half| u32::try_from(half).unwrap_or(0))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;

    use fuse_backend_rs::api::server::Server;
    use fuse_backend_rs::api::{Vfs, VfsOptions};
    use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

    use super::*;
    use crate::fuse::request::{Scratch, opcode};
    use crate::transport::testing::{Buffer, with_chain};

    /// What `answer` makes of a FUSE_INIT in guest memory: what it returns, and what the guest then has.
    fn answered(words: &[u32], answer: impl FnOnce(&Chain<'_>) -> Option<u32>) -> (Option<u32>, Vec<u8>) {
        let mut request = [56_u32 + 48, opcode::INIT, 42, 0, 0, 0, 0, 0, 0, 0].to_vec();
        request.extend(words);
        request.resize(26, 0);
        let raw: Vec<u8> = request.iter().flat_map(|word| word.to_le_bytes()).collect();
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        map.write_slice(&raw, GuestAddress(0x8000)).unwrap();
        let memory = GuestMemoryAtomic::new(map).memory();
        let buffer = |addr, len, write| Buffer { addr, len, write };
        let buffers = [buffer(0x8000, 104, false), buffer(0x2000, 80, true)];
        let written = with_chain(&memory, &buffers, answer);
        let mut out = vec![0; 80];
        memory.read_slice(&mut out, GuestAddress(0x2000)).unwrap();
        (written, out)
    }

    fn ours(words: &[u32], options: FsOptions) -> (Option<u32>, Vec<u8>) {
        answered(words, |chain| {
            let mut scratch = Scratch::default();
            let request = Request::read(chain, &mut scratch)?;
            let offer = match Offer::read(&request) {
                Ok(offer) => offer,
                Err(errno) => return Some(reply::error(chain, request.unique, errno)),
            };
            let agreed = (!offer.is_ahead()).then(|| offer.agree(options));
            Some(offer.reply(agreed.as_ref(), request.unique, chain))
        })
    }

    fn theirs(words: &[u32], options: FsOptions) -> (Option<u32>, Vec<u8>) {
        let options = VfsOptions {
            out_opts: options,
            no_open: false,
            no_opendir: false,
            killpriv_v2: true,
            ..VfsOptions::default()
        };
        answered(words, |chain| {
            let server = Server::new(Arc::new(Vfs::new(options)));
            let descriptors = chain.descriptors()?;
            let reader = Reader::from_descriptor_chain(chain.memory(), descriptors.clone()).ok()?;
            let writer = VirtioFsWriter::new(chain.memory(), descriptors).ok()?;
            let outcome = server.handle_message(reader, writer.into(), None, None);
            u32::try_from(outcome.ok()?).ok()
        })
    }

    proptest! {
        #[test]
        fn the_answer_is_that_of_the_server(
            major in prop_oneof![8 => Just(7_u32), 1 => 0..7_u32, 1 => 8..100_u32],
            minor in 0..50_u32,
            readahead in any::<u32>(),
            flags in any::<[u32; 2]>(),
            can in any::<u64>(),
        ) {
            // What the VFS does not answer when asked for neither, and what the server does not know.
            let never = FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR;
            let options = FsOptions::from_bits_truncate(can) - never;
            let flags2 = flags[1] & !halves(CREATE_SUPP_GROUP)[1];
            let words = [major, minor, readahead, flags[0], flags2];
            prop_assert_eq!(ours(&words, options), theirs(&words, options));
        }
    }

    #[test]
    fn groups_are_asked_for_where_they_are_offered() {
        let answer = |offered: u64| {
            let [flags, flags2] = halves(offered);
            let (_, out) = ours(&[7, 38, 0, flags, flags2], FsOptions::INIT_EXT);
            u32_at(&out, 16 + 32)
        };
        let extended = FsOptions::INIT_EXT.bits();
        assert_eq!(answer(extended | CREATE_SUPP_GROUP), halves(CREATE_SUPP_GROUP)[1]);
        assert_eq!(answer(extended), 0);
        // Without the extension there are no upper flags.
        assert_eq!(answer(CREATE_SUPP_GROUP), 0);
    }
}
