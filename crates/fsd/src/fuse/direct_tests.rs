//! What is answered here is what fuse-backend-rs' server answers, byte for byte, whatever the guest sends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek};
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{Attr, stat64};
use fuse_backend_rs::api::filesystem::{DirEntry, Entry, ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::super::request::Scratch;
use super::*;
use crate::transport::testing::{Buffer, with_chain};

/// Answers with something that depends on everything it was asked.
struct Echo;

fn attributes(seed: u64) -> stat64 {
    // Plain numbers: every field that is sent is filled.
    let attr = Attr {
        ino: seed,
        size: seed ^ 0x1111,
        blocks: seed ^ 0x2222,
        mode: 0o100_644,
        nlink: 3,
        uid: 7,
        gid: 8,
        blksize: 4096,
        ..Default::default()
    };
    attr.into()
}

impl FileSystem for Echo {
    type Inode = u64;
    type Handle = u64;

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let length = name.to_bytes().len() as u64;
        if length == 0 {
            return Err(io::Error::from_raw_os_error(2));
        }
        Ok(Entry {
            inode: parent.wrapping_add(length),
            generation: u64::from(ctx.uid),
            attr: attributes(parent ^ length),
            attr_flags: 1,
            attr_timeout: Duration::from_millis(1500),
            entry_timeout: Duration::from_millis(2500),
        })
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        for n in 0..30_u8 {
            let name = vec![b'n'; usize::from(n % 11) + 1];
            let entry = DirEntry {
                ino: inode ^ handle ^ u64::from(ctx.uid),
                offset: offset.wrapping_add(n.into()),
                type_: n.into(),
                name: &name,
            };
            if add_entry(entry)? == 0 {
                break;
            }
        }
        // Too late for what is written already.
        if inode == 13 {
            Err(io::Error::from_raw_os_error(116))
        } else {
            Ok(())
        }
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.readdir(ctx, inode, handle, size, offset, &mut |dirent| {
            let entry = self.lookup(ctx, inode, c"name")?;
            add_entry(dirent, entry)
        })
    }

    fn getattr(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        if inode == 13 {
            return Err(io::Error::from_raw_os_error(116));
        }
        let seed = inode ^ handle.unwrap_or(0) ^ u64::from(ctx.gid);
        Ok((attributes(seed), Duration::from_millis(700)))
    }

    fn write(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let mut file = tempfile::tempfile()?;
        let half = size as usize / 2;
        let mut taken = r.read_to(&mut file, half, 0)?;
        taken += r.read_to(&mut file, size as usize - taken, taken as u64)?;
        let mut content = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut content)?;
        assert_eq!(content.len(), taken);
        let mut hash = DefaultHasher::new();
        let rest = (lock_owner, delayed_write, flags, fuse_flags);
        (inode, handle, size, offset, rest, content).hash(&mut hash);
        Ok(usize::try_from(hash.finish() & 0xffff_ffff).unwrap())
    }

    fn read(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let seed = inode ^ handle ^ offset ^ lock_owner.unwrap_or(0) ^ u64::from(flags);
        let content: Vec<u8> = (0..size.min(6000))
            .map(|i| (seed ^ u64::from(i)).to_le_bytes()[0])
            .collect();
        w.write(&content)
    }
}

/// What a guest has in its buffers after a request, and what the used ring says.
fn outcome(buffers: &[Buffer], request: &[u8], ours: bool) -> (u32, Vec<u8>) {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    map.write_slice(request, GuestAddress(0x8000)).unwrap();
    let memory = GuestMemoryAtomic::new(map).memory();
    let written = with_chain(&memory, buffers, |chain| {
        let mut scratch = Scratch::default();
        let request = Request::read(chain, &mut scratch)?;
        if ours && let Some(written) = serve(&Echo, &request, chain) {
            return Some(written);
        }
        let server = Server::new(Arc::new(Echo));
        let descriptors = chain.descriptors()?;
        let reader = Reader::from_descriptor_chain(chain.memory(), descriptors.clone()).ok()?;
        let writer = VirtioFsWriter::new(chain.memory(), descriptors).ok()?;
        let outcome = server.handle_message(reader, writer.into(), None, None);
        u32::try_from(outcome.ok()?).ok()
    });
    let mut answer = vec![0; 0x6000];
    memory.read_slice(&mut answer, GuestAddress(0x2000)).unwrap();
    (written.unwrap_or(0), answer)
}

#[test]
fn a_buffer_may_lie_in_two_mappings() {
    let mut request = Vec::new();
    request.extend(56_u32.to_le_bytes());
    request.extend(opcode::GETATTR.to_le_bytes());
    request.extend(42_u64.to_le_bytes());
    request.extend(7_u64.to_le_bytes());
    request.resize(56, 0);
    let answer = |regions: &[(GuestAddress, usize)]| {
        let map = GuestMemoryMmap::from_ranges(regions).unwrap();
        map.write_slice(&request, GuestAddress(0x7fe0)).unwrap();
        let memory = GuestMemoryAtomic::new(map).memory();
        let buffer = |addr, len, write| Buffer { addr, len, write };
        let buffers = [buffer(0x7fe0, 56, false), buffer(0x2ff0, 120, true)];
        let written = with_chain(&memory, &buffers, |chain| {
            let mut scratch = Scratch::default();
            serve(&Echo, &Request::read(chain, &mut scratch).unwrap(), chain).unwrap()
        });
        let mut answer = vec![0; 120];
        memory.read_slice(&mut answer, GuestAddress(0x2ff0)).unwrap();
        (written, answer)
    };
    let whole = answer(&[(GuestAddress(0), 0x10000)]);
    let apart = [
        (GuestAddress(0), 0x3000),
        (GuestAddress(0x3000), 0x5000),
        (GuestAddress(0x8000), 0x8000),
    ];
    assert_eq!(whole.0, 120);
    assert_eq!(answer(&apart), whole);
}

/// A directory of two, one of which could not be looked up.
struct Unknown;

impl FileSystem for Unknown {
    type Inode = u64;
    type Handle = u64;

    fn readdirplus(
        &self,
        _ctx: &Context,
        _inode: u64,
        _handle: u64,
        _size: u32,
        _offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for (ino, attr) in [(7, attributes(7)), (8, stat64::from(Attr::default()))] {
            let dirent = DirEntry {
                ino,
                offset: ino,
                type_: 4,
                name: b"name",
            };
            let entry = Entry {
                inode: ino,
                attr,
                ..Entry::default()
            };
            add_entry(dirent, entry)?;
        }
        Ok(())
    }
}

#[test]
fn an_entry_that_was_not_looked_up_is_listed_with_its_number_and_no_node() {
    let mut request = Vec::new();
    request.extend(80_u32.to_le_bytes());
    request.extend(opcode::READDIRPLUS.to_le_bytes());
    request.resize(40 + 16, 0);
    request.extend(1000_u32.to_le_bytes());
    request.resize(80, 0);
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    map.write_slice(&request, GuestAddress(0x8000)).unwrap();
    let memory = GuestMemoryAtomic::new(map).memory();
    let buffer = |addr, len, write| Buffer { addr, len, write };
    let buffers = [buffer(0x8000, 80, false), buffer(0x2000, 1016, true)];
    let written = with_chain(&memory, &buffers, |chain| {
        let mut scratch = Scratch::default();
        serve(&Unknown, &Request::read(chain, &mut scratch).unwrap(), chain).unwrap()
    });
    assert_eq!(written, 16 + 2 * 160);
    let number = |at: u64| memory.read_obj::<u64>(GuestAddress(0x2000 + 16 + at)).unwrap();
    // The node of each, and the number that its directory entry shows.
    assert_eq!((number(0), number(128)), (7, 7));
    assert_eq!((number(160), number(160 + 128)), (0, 8));
}

/// Remembers what it is to forget.
#[derive(Default)]
struct Forgetful(std::sync::Mutex<Vec<(u64, u64)>>);

impl FileSystem for Forgetful {
    type Inode = u64;
    type Handle = u64;

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        self.0.lock().unwrap().push((inode, count));
    }
}

#[test]
fn a_forget_is_passed_on_and_never_answered() {
    let mut request = Vec::new();
    request.extend(48_u32.to_le_bytes());
    request.extend(opcode::FORGET.to_le_bytes());
    request.extend(42_u64.to_le_bytes());
    request.extend(7_u64.to_le_bytes());
    request.resize(40, 0);
    request.extend(3_u64.to_le_bytes());
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    map.write_slice(&request, GuestAddress(0x8000)).unwrap();
    let memory = GuestMemoryAtomic::new(map).memory();
    let served = |len| {
        let fs = Forgetful::default();
        // No guest gives room for an answer; one that does must find it untouched.
        let buffers = [
            Buffer {
                addr: 0x8000,
                len,
                write: false,
            },
            Buffer {
                addr: 0x2000,
                len: 16,
                write: true,
            },
        ];
        let written = with_chain(&memory, &buffers, |chain| {
            let mut scratch = Scratch::default();
            serve(&fs, &Request::read(chain, &mut scratch).unwrap(), chain)
        });
        let mut answer = [0xff; 16];
        memory.read_slice(&mut answer, GuestAddress(0x2000)).unwrap();
        (written, fs.0.into_inner().unwrap(), answer)
    };
    assert_eq!(served(48), (Some(0), vec![(7, 3)], [0; 16]));
    // What is cut off is left to the server.
    assert_eq!(served(47), (None, Vec::new(), [0; 16]));
}

proptest! {
    #[test]
    fn answers_are_those_of_the_server(
        code in prop::sample::select(vec![
            opcode::GETATTR, opcode::LOOKUP, opcode::READ, opcode::READDIR, opcode::READDIRPLUS, opcode::WRITE,
        ]),
        nodeid in prop_oneof![Just(13_u64), any::<u64>()],
        ids in any::<[u32; 2]>(),
        argument in prop::collection::vec(any::<u8>(), 40),
        data in prop::collection::vec(any::<u8>(), 0..3000),
        name in "[a-z]{0,20}",
        size in 0_u32..5000,
        cut in 1_usize..39,
        pages in prop::collection::vec(1_u32..2000, 0..6),
    ) {
        let mut argument = argument;
        if code == opcode::LOOKUP {
            argument = [name.as_bytes(), &[0]].concat();
        } else if code != opcode::GETATTR {
            argument[16..20].copy_from_slice(&size.to_le_bytes());
        }
        if code == opcode::WRITE {
            argument.extend(data);
        }
        let len = 40 + argument.len();
        let mut request = Vec::new();
        request.extend(u32::try_from(len).unwrap().to_le_bytes());
        request.extend(code.to_le_bytes());
        request.extend(42_u64.to_le_bytes());
        request.extend(nodeid.to_le_bytes());
        request.extend(ids[0].to_le_bytes());
        request.extend(ids[1].to_le_bytes());
        request.extend([0; 8]);
        request.extend(&argument);
        // The request in two pieces, anywhere; room for the answer in pieces, too, but for 200 bytes at least.
        let mut buffers = vec![
            Buffer { addr: 0x8000, len: u32::try_from(cut).unwrap(), write: false },
            Buffer { addr: 0x8000 + cut as u64, len: u32::try_from(len - cut).unwrap(), write: false },
            Buffer { addr: 0x2000, len: 200, write: true },
        ];
        let mut at = 0x2000 + 200;
        for page in pages {
            buffers.push(Buffer { addr: at, len: page, write: true });
            at += u64::from(page);
        }
        let (ours, theirs) = (outcome(&buffers, &request, true), outcome(&buffers, &request, false));
        // Data that did not fit is EIO here and there; the server leaves that answer to its caller.
        if theirs.0 != 0 {
            prop_assert_eq!(ours.0, theirs.0);
            let len = usize::try_from(ours.0).unwrap();
            prop_assert_eq!(&ours.1[..len], &theirs.1[..len]);
        } else {
            prop_assert_eq!(ours.0, HEADER_LEN);
        }
    }
}
