//! A file system whose server does not answer, as a network's that is away.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

/// Its server, without which it fails instead of not answering.
pub struct DeadFs(File);

impl DeadFs {
    /// Mounts it on a directory, for this thread and what it starts from now on; `None`, said aloud, where it may not.
    pub fn on(dir: &Path) -> Option<Self> {
        #[expect(
            deprecated,
            reason = "a mount namespace is no table of descriptors; its successor is unsafe"
        )]
        let own = rustix::thread::unshare(UnshareFlags::NEWNS)
            .and_then(|()| mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC));
        let made = own.and_then(|()| {
            let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let options = CString::new(options).unwrap();
            mount("dead", dir, "fuse", MountFlags::empty(), options.as_c_str())?;
            Ok(Self(server.into()))
        });
        if let Err(errno) = &made {
            assert!(
                std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|v| v != "1"),
                "mount: {errno}"
            );
            eprintln!("skipped: no file system of its own: {errno}");
        }
        made.ok()
    }

    /// Has the next request taken, but not answered: who waits for it then cannot be killed. Says when that is so.
    pub fn take_a_request(&self) -> Receiver<()> {
        const INIT: u32 = 26;
        let mut server = self.0.try_clone().unwrap();
        let (took, taken) = channel();
        std::thread::spawn(move || {
            let mut request = vec![0; 1 << 20];
            loop {
                let _ = server.read(&mut request).unwrap();
                if u32::from_le_bytes(request[4..8].try_into().unwrap()) != INIT {
                    break;
                }
                // fuse_out_header, and fuse_init_out of version 7.31.
                let mut answer = vec![0; 80];
                answer[..4].copy_from_slice(&80_u32.to_le_bytes());
                answer[8..16].copy_from_slice(&request[8..16]);
                for (at, word) in [(16, 7_u32), (20, 31), (24, 1 << 16), (36, 1 << 16)] {
                    answer[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                server.write_all(&answer).unwrap();
            }
            took.send(()).unwrap();
        });
        taken
    }
}
