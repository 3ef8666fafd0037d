//! What the guest's init says on its control port: one event a line.
//!
//! The guest may have been taken over by what runs in it, so a line is foreign input: what is not an event is dropped,
//! and no line grows without bound ([`LineBuffer`]).

use std::fmt;

/// The longest line kept. A longer one is cut, and still ends at its newline.
const MAX_LINE_LEN: usize = 4096;

/// The line by which init says that it waits for its parameters. Not an event: in a machine that goes on from a
/// template it is long past.
pub(super) const WAITING: &[u8] = b"waiting";

/// A step of the guest's start that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestStep {
    /// Loading the modules that the share and the overlay need.
    Modules,
    /// Mounting the virtio-fs share.
    Share,
    /// Mounting the container's overlay and what belongs into it.
    Rootfs,
    /// Showing a shared directory in the container.
    Shares,
    /// Making the working directory.
    Workdir,
    /// Finding the command's user in the container.
    User,
    /// A step this version doesn't know.
    Unknown,
}

impl fmt::Display for GuestStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Modules => "loading the kernel's modules",
            Self::Share => "mounting the share",
            Self::Rootfs => "mounting the root file system",
            Self::Shares => "showing a shared directory",
            Self::Workdir => "making the working directory",
            Self::User => "finding the command's user",
            Self::Unknown => "an unknown step",
        })
    }
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestEvent {
    /// Init runs and knows what it is for.
    Ready,
    /// The share is mounted.
    ShareMounted,
    /// The container's root is mounted.
    RootfsMounted,
    /// The command is about to be executed.
    CommandStarted,
    /// The command ended, with a shell's exit status: 127 not found, 126 not executable, 128+n killed by signal n.
    Exited {
        /// The status.
        status: u8,
    },
    /// A step failed; no command runs.
    Failed {
        /// The step.
        step: GuestStep,
        /// What the guest says about it.
        message: String,
    },
}

impl GuestEvent {
    /// Reads one line, without its newline.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(line);
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match (word, rest) {
            ("ready", "") => Some(Self::Ready),
            ("share-mounted", "") => Some(Self::ShareMounted),
            ("rootfs-mounted", "") => Some(Self::RootfsMounted),
            ("command-started", "") => Some(Self::CommandStarted),
            ("exit", status) => status.parse().ok().map(|status| Self::Exited { status }),
            ("error", rest) => {
                let (step, message) = rest.split_once(' ').unwrap_or((rest, ""));
                let step = match step {
                    "modules" => GuestStep::Modules,
                    "share" => GuestStep::Share,
                    "rootfs" => GuestStep::Rootfs,
                    "shares" => GuestStep::Shares,
                    "workdir" => GuestStep::Workdir,
                    "user" => GuestStep::User,
                    _ => GuestStep::Unknown,
                };
                Some(Self::Failed {
                    step,
                    // It goes to the operator's terminal, and may have an image's names in it, or what a guest likes.
                    message: message.trim().chars().filter(|c| !c.is_control()).collect(),
                })
            }
            _ => None,
        }
    }
}

/// Cuts a stream into lines of bounded length.
#[derive(Debug, Default)]
pub(super) struct LineBuffer {
    line: Vec<u8>,
}

impl LineBuffer {
    /// Takes the next bytes and returns the lines they end.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let room = MAX_LINE_LEN - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                lines.push(std::mem::take(&mut self.line));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_event_is_read() {
        for (line, event) in [
            ("ready", Some(GuestEvent::Ready)),
            ("share-mounted", Some(GuestEvent::ShareMounted)),
            ("rootfs-mounted", Some(GuestEvent::RootfsMounted)),
            ("command-started", Some(GuestEvent::CommandStarted)),
            ("exit 0", Some(GuestEvent::Exited { status: 0 })),
            ("exit 255", Some(GuestEvent::Exited { status: 255 })),
            ("exit 256", None),
            ("exit", None),
            ("ready now", None),
            ("", None),
            (
                "error share mount: no such device ",
                Some(GuestEvent::Failed {
                    step: GuestStep::Share,
                    message: "mount: no such device".to_owned(),
                }),
            ),
            (
                "error share \u{1b}]0;mine\u{7}\u{1b}[31mno such file",
                Some(GuestEvent::Failed {
                    step: GuestStep::Share,
                    message: "]0;mine[31mno such file".to_owned(),
                }),
            ),
            (
                "error new-step",
                Some(GuestEvent::Failed {
                    step: GuestStep::Unknown,
                    message: String::new(),
                }),
            ),
        ] {
            assert_eq!(GuestEvent::parse(line.as_bytes()), event, "{line}");
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_the_stream_is_cut(
            text in "[a-c\n]{0,200}", cuts in proptest::collection::vec(0usize..200, 0..5),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut buffer = LineBuffer::default();
            let lines: Vec<Vec<u8>> =
                cuts.windows(2).flat_map(|w| buffer.feed(&text.as_bytes()[w[0]..w[1]])).collect();
            let mut model: Vec<&str> = text.split('\n').collect();
            model.pop();
            let model: Vec<Vec<u8>> = model.iter().map(|l| l.as_bytes().to_vec()).collect();
            prop_assert_eq!(lines, model);
        }

        #[test]
        fn a_guest_can_neither_panic_nor_fill_us(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut buffer = LineBuffer::default();
            for line in buffer.feed(&bytes) {
                prop_assert!(line.len() <= MAX_LINE_LEN);
                let _ = GuestEvent::parse(&line);
            }
        }
    }
}
