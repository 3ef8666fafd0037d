//! Starting QEMU's process, with everything it is handed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::accel::Accel;
use super::arguments::{
    CONSOLE_FD, FIRST_PORT_FD, INITRAMFS_FD, MEMORY_FD, PORTS, QMP_FD, STATE_FD, arguments,
};
use super::machine::BootError;
use super::machine_config::MachineSpec;
use super::qmp::Qmp;

/// QEMU's process and our ends of what it was handed.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) child: Child,
    pub(super) ports: [UnixStream; PORTS.len()],
    pub(super) qmp: Qmp,
    /// The guest's memory; nothing has been written to it yet.
    pub(super) memory: Arc<File>,
    pub(super) console: UnixStream,
    /// Takes the state of a machine that goes on, from its second byte.
    pub(super) state: Option<pipe::Sender>,
}

/// Starts it; `name` is the machine's. `goes_on` has the first byte of the state of a machine that goes on, which it then waits for. With that
/// byte, QEMU reads on until the pipe's end, and gives up if that comes too soon because we are gone; before it, it would
/// wait for ever.
pub(super) fn spawn(
    spec: &MachineSpec,
    accel: Accel,
    initramfs: &File,
    name: &Path,
    goes_on: Option<u8>,
) -> Result<Spawned, BootError> {
    let failed = |what| move |source| BootError::Resource { what, source };
    let mut theirs = Vec::new();
    let mut ours = Vec::new();
    for child_fd in (FIRST_PORT_FD..).take(PORTS.len()) {
        let (our_end, parent_fd) = socket_pair().map_err(failed("a port's sockets"))?;
        ours.push(our_end);
        theirs.push(FdMapping { parent_fd, child_fd });
    }
    let ports = ours.try_into().expect("one socket was made for each port");
    let (qmp, parent_fd) = socket_pair().map_err(failed("QEMU's control sockets"))?;
    theirs.push(FdMapping {
        parent_fd,
        child_fd: QMP_FD,
    });
    let (console, parent_fd) = socket_pair().map_err(failed("the console's sockets"))?;
    theirs.push(FdMapping {
        parent_fd,
        child_fd: CONSOLE_FD,
    });
    theirs.push(FdMapping {
        parent_fd: initramfs.try_clone().map_err(failed("a descriptor"))?.into(),
        child_fd: INITRAMFS_FD,
    });
    let memory = memory_file("nydusbox-memory").map_err(failed("the guest's memory"))?;
    memory
        .set_len(spec.memory_bytes)
        .map_err(failed("the guest's memory"))?;
    theirs.push(FdMapping {
        parent_fd: memory.try_clone().map_err(failed("a descriptor"))?.into(),
        child_fd: MEMORY_FD,
    });
    let state = if let Some(first) = goes_on {
        let (reader, mut writer) = io::pipe().map_err(failed("a pipe"))?;
        writer.write_all(&[first]).map_err(failed("a pipe"))?;
        theirs.push(FdMapping {
            parent_fd: reader.into(),
            child_fd: STATE_FD,
        });
        Some(pipe::Sender::from_owned_fd(writer.into()).map_err(failed("a pipe"))?)
    } else {
        None
    };

    let mut command = Command::new(&spec.qemu);
    command
        .args(arguments(spec, accel, name, goes_on.is_some()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Its own group: a Ctrl-C at the terminal is ours to act on, in our order.
        .process_group(0)
        .kill_on_drop(true)
        .fd_mappings(theirs)
        .map_err(BootError::Descriptors)?;
    let child = command.spawn().map_err(|source| BootError::Spawn {
        program: spec.qemu.clone(),
        source,
    })?;
    // The child's ends live in the command; while we hold them, no port would ever show QEMU's end.
    drop(command);
    Ok(Spawned {
        child,
        ports,
        qmp: Qmp::new(qmp),
        memory: Arc::new(memory),
        console,
        state,
    })
}

/// A file that is nowhere but in memory.
pub(super) fn memory_file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Our end, and QEMU's as a blocking descriptor.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
