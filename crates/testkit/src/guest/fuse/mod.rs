//! FUSE on top of the transport: [`FuseClient`] makes typed, blocking calls; [`ops`] makes requests to
//! send many of. Errnos and transport failures are different errors. Path helpers are in [`paths`].

mod calls;
pub mod ops;
pub mod paths;
pub mod types;
pub mod wire;

use std::collections::HashMap;
use std::path::Path;

use rustix::io::Errno;

use super::error::GuestError;
use super::request::{Reply, Request, Ticket};
use super::transport::{GuestConfig, SimGuest};
use types::InitOut;

/// The root's nodeid.
pub const ROOT: u64 = 1;

/// Why a FUSE call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The daemon answered with an errno.
    #[error("{call} answered {errno}")]
    Errno {
        /// The FUSE opcode's name.
        call: &'static str,
        /// The errno.
        errno: Errno,
    },
    /// The daemon's answer is malformed.
    #[error("{call} answered {got} bytes that make no reply")]
    Malformed {
        /// The FUSE opcode's name.
        call: &'static str,
        /// How long the body was.
        got: usize,
    },
    /// The transport failed.
    #[error("the transport under {call}")]
    Transport {
        /// The FUSE opcode's name.
        call: &'static str,
        /// Why.
        #[source]
        source: GuestError,
    },
}

impl FuseError {
    /// The errno, if that is what it was.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Errno { errno, .. } => Some(*errno),
            Self::Malformed { .. } | Self::Transport { .. } => None,
        }
    }
}

/// A mounted file system, as the guest's kernel sees it.
#[derive(Debug)]
pub struct FuseClient {
    guest: SimGuest,
    init: InitOut,
    no_open: bool,
    no_opendir: bool,
    lookups: HashMap<u64, u64>,
    caller: (u32, u32, u32),
}

impl FuseClient {
    /// Connects a guest to a vhost-user socket and mounts: FUSE_INIT as Linux 6.1 sends it.
    ///
    /// # Errors
    /// Any [`FuseError`].
    pub fn mount(socket: &Path, config: GuestConfig) -> Result<Self, FuseError> {
        let guest = SimGuest::connect(socket, config).map_err(|source| FuseError::Transport {
            call: "connect",
            source,
        })?;
        let mut client = Self::new(guest);
        client.init()?;
        Ok(client)
    }

    /// FUSE on a guest that is connected; [`Self::init`] comes next.
    pub fn new(guest: SimGuest) -> Self {
        Self {
            guest,
            init: InitOut::default(),
            no_open: false,
            no_opendir: false,
            lookups: HashMap::new(),
            caller: (0, 0, 1),
        }
    }

    /// The transport, for requests in flight and hostile chains.
    pub fn guest(&mut self) -> &mut SimGuest {
        &mut self.guest
    }

    /// Gives the transport back.
    pub fn into_guest(self) -> SimGuest {
        self.guest
    }

    /// What INIT agreed on.
    pub fn negotiated(&self) -> &InitOut {
        &self.init
    }

    /// Further calls come from this user and group.
    pub fn act_as(&mut self, uid: u32, gid: u32) {
        self.caller.0 = uid;
        self.caller.1 = gid;
    }

    /// Reboots the guest on the same connection: rings from zero, then FUSE_INIT without a DESTROY.
    ///
    /// # Errors
    /// Any [`FuseError`].
    pub fn reboot(&mut self) -> Result<InitOut, FuseError> {
        self.guest.reboot().map_err(|source| FuseError::Transport {
            call: "reboot",
            source,
        })?;
        self.init()
    }

    /// Drops the connection, makes a new one and mounts again: a VMM that was restarted.
    ///
    /// # Errors
    /// Any [`FuseError`].
    pub fn reconnect(self) -> Result<Self, FuseError> {
        let guest = self.guest.reconnect().map_err(|source| FuseError::Transport {
            call: "reconnect",
            source,
        })?;
        let mut client = Self::new(guest);
        client.init()?;
        Ok(client)
    }

    /// Sends a request without waiting; the caller's identity is filled in.
    ///
    /// # Errors
    /// [`FuseError::Transport`].
    pub fn submit(&mut self, mut request: Request) -> Result<Ticket, FuseError> {
        request.caller = self.caller;
        self.guest
            .submit(&request)
            .map_err(|source| FuseError::Transport {
                call: "submit",
                source,
            })
    }

    /// Waits for a request sent by [`Self::submit`]; the body of its reply.
    ///
    /// # Errors
    /// Any [`FuseError`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Vec<u8>, FuseError> {
        let call = "a submitted request";
        let reply = self
            .guest
            .wait(ticket)
            .map_err(|source| FuseError::Transport { call, source })?;
        body(call, reply)
    }

    fn call(&mut self, call: &'static str, mut request: Request) -> Result<Vec<u8>, FuseError> {
        request.caller = self.caller;
        let transport = |source| FuseError::Transport { call, source };
        let ticket = self.guest.submit(&request).map_err(transport)?;
        body(call, self.guest.wait(ticket).map_err(transport)?)
    }
}

/// The body of a reply, or its errno.
///
/// # Errors
/// [`FuseError::Errno`].
pub fn body(call: &'static str, reply: Reply) -> Result<Vec<u8>, FuseError> {
    if reply.error == 0 {
        Ok(reply.body)
    } else {
        Err(FuseError::Errno {
            call,
            errno: Errno::from_raw_os_error(-reply.error),
        })
    }
}
