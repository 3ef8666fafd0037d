//! QEMU's control socket: commands as JSON, one a line (QEMU Machine Protocol, docs/interop/qmp-spec.rst).
//!
//! One command at a time; events that come meanwhile are kept for who waits for them. No deadlines here: whoever waits
//! has one for the whole.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::UnixStream;

/// The longest answer that is read. QEMU's longest, the greeting included, have a few hundred bytes.
const MAX_ANSWER_LEN: usize = 1 << 20;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// QEMU is gone, or about to.
    #[error("QEMU has closed its control socket")]
    Closed(#[source] io::Error),
    /// It said no.
    #[error("QEMU refused {command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its words.
        message: String,
    },
    /// It said something that is no answer.
    #[error("QEMU answered {command} with what is not understood: {answer}")]
    Protocol {
        /// The command.
        command: &'static str,
        /// The beginning of the answer.
        answer: String,
    },
}

/// Something that happened in QEMU.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "event")]
    pub(super) name: String,
    #[serde(default)]
    pub(super) data: Value,
}

/// What is read: one of these has a value.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has come of the next line.
    line: Vec<u8>,
    events: VecDeque<Event>,
}

impl Qmp {
    /// On QEMU's socket, which must not have been read from.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            line: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// Waits for the greeting, and begins.
    pub(super) async fn greet(&mut self) -> Result<(), QmpError> {
        let greeting = self.line().await?;
        if serde_json::from_slice::<Value>(&greeting).is_ok_and(|value| value.get("QMP").is_some()) {
            self.execute("qmp_capabilities", json!({})).await
        } else {
            Err(not_understood("the connection", &greeting))
        }
    }

    /// Prepares for machines that are saved, or go on. Memory that others have mapped too, the guest's, is then no part of
    /// their state: it is ours to copy.
    pub(super) async fn set_up_migration(&mut self) -> Result<(), QmpError> {
        let on = |capability| json!({ "capability": capability, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.execute("migrate-set-capabilities", capabilities).await
    }

    /// Executes a command whose result doesn't matter, but that there is one.
    pub(super) async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<(), QmpError> {
        let request = request(command, &arguments);
        self.send(&request, None).await?;
        self.answer(command).await
    }

    /// Gives QEMU a descriptor, which it then knows by `name`.
    pub(super) async fn give(&mut self, fd: impl AsFd, name: &'static str) -> Result<(), QmpError> {
        let request = request("getfd", &json!({ "fdname": name }));
        self.send(&request, Some(fd.as_fd())).await?;
        self.answer("getfd").await
    }

    /// The next event that has not been taken.
    ///
    /// # Cancel safety
    /// Safe: what has been read stays.
    pub(super) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let line = self.line().await?;
            self.keep_event(&line);
        }
    }

    /// Waits for the event `name`; others are dropped.
    pub(super) async fn wait_for(&mut self, name: &str) -> Result<Event, QmpError> {
        loop {
            let event = self.event().await?;
            if event.name == name {
                return Ok(event);
            }
        }
    }

    async fn answer(&mut self, command: &'static str) -> Result<(), QmpError> {
        loop {
            let line = self.line().await?;
            if self.keep_event(&line) {
                continue;
            }
            return match serde_json::from_slice(&line) {
                Ok(Message { result: Some(_), .. }) => Ok(()),
                Ok(Message {
                    error: Some(refusal), ..
                }) => Err(QmpError::Refused {
                    command,
                    message: refusal.desc,
                }),
                Ok(_) | Err(_) => Err(not_understood(command, &line)),
            };
        }
    }

    fn keep_event(&mut self, line: &[u8]) -> bool {
        let Ok(event) = serde_json::from_slice(line) else {
            return false;
        };
        self.events.push_back(event);
        true
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<Vec<u8>, QmpError> {
        loop {
            let read = self.stream.fill_buf().await.map_err(QmpError::Closed)?;
            if read.is_empty() || self.line.len() > MAX_ANSWER_LEN {
                return Err(QmpError::Closed(io::ErrorKind::UnexpectedEof.into()));
            }
            let end = read.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            self.line.extend_from_slice(&read[..taken]);
            self.stream.consume(taken);
            if end.is_some() {
                return Ok(std::mem::take(&mut self.line));
            }
        }
    }

    async fn send(&mut self, request: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), QmpError> {
        let stream = self.stream.get_ref();
        let mut sent = 0;
        while sent < request.len() {
            sent += stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    // With the first byte, and once.
                    let fds = fd.filter(|_| sent == 0);
                    if let Some(fds) = &fds {
                        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fds)));
                    }
                    let rest = [IoSlice::new(&request[sent..])];
                    Ok(sendmsg(stream, &rest, &mut control, SendFlags::NOSIGNAL)?)
                })
                .await
                .map_err(QmpError::Closed)?;
        }
        Ok(())
    }
}

fn request(command: &str, arguments: &Value) -> Vec<u8> {
    let mut request = json!({ "execute": command, "arguments": arguments })
        .to_string()
        .into_bytes();
    request.push(b'\n');
    request
}

fn not_understood(command: &'static str, answer: &[u8]) -> QmpError {
    let answer = String::from_utf8_lossy(answer)
        .trim_end()
        .chars()
        .take(200)
        .collect();
    QmpError::Protocol { command, answer }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Read, Write};
    use tokio::io::AsyncWriteExt;

    /// A connection, and the other end.
    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp::new(ours), theirs)
    }

    #[tokio::test]
    async fn an_answer_may_come_in_pieces_and_after_events() {
        let (mut qmp, mut qemu) = pair();
        let talk = async {
            qmp.execute("cont", json!({})).await.unwrap();
            qmp.wait_for("STOP").await.unwrap()
        };
        let answers = async {
            for piece in [
                "{\"event\": \"RES",
                "UME\"}\r\n{\"ret",
                "urn\": {}}\r\n{\"event\": \"STOP\", \"data\": {\"a\": 1}}\r\n",
            ] {
                qemu.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (stop, ()) = tokio::join!(talk, answers);
        assert_eq!(stop.data["a"], 1);
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_qemus_words() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such bus\"}}\r\n")
            .await
            .unwrap();
        let error = qmp.execute("device_add", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused device_add: no such bus");
        qemu.write_all(b"hello\n").await.unwrap();
        let error = qmp.execute("cont", json!({})).await.unwrap_err();
        assert!(
            matches!(error, QmpError::Protocol { command: "cont", .. }),
            "{error}"
        );
        drop(qemu);
        let error = qmp.execute("cont", json!({})).await.unwrap_err();
        assert!(matches!(error, QmpError::Closed(_)), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_qmp_is_not_talked_to() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"SSH-2.0\r\n").await.unwrap();
        let error = qmp.greet().await.unwrap_err();
        assert!(error.to_string().contains("SSH-2.0"), "{error}");
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_command() {
        let (mut qmp, qemu) = pair();
        let (mut read, write) = io::pipe().unwrap();
        let qemu = qemu.into_std().unwrap();
        qemu.set_nonblocking(false).unwrap();
        let other_end = std::thread::spawn(move || {
            let mut bytes = [0; 200];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffer = [IoSliceMut::new(&mut bytes)];
            let read = recvmsg(&qemu, &mut buffer, &mut control, RecvFlags::empty())
                .unwrap()
                .bytes;
            let fd = control
                .drain()
                .find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                })
                .unwrap();
            (&qemu).write_all(b"{\"return\": {}}\n").unwrap();
            std::fs::File::from(fd).write_all(b"through").unwrap();
            String::from_utf8(bytes[..read].to_vec()).unwrap()
        });
        qmp.give(&write, "state").await.unwrap();
        drop(write);
        let request: Value = serde_json::from_str(&other_end.join().unwrap()).unwrap();
        assert_eq!(
            request,
            json!({"execute": "getfd", "arguments": {"fdname": "state"}})
        );
        let mut through = String::new();
        read.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
    }
}
