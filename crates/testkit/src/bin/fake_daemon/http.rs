//! The fake daemon's API: just enough HTTP, and every way to get it wrong.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// As nydusd does.
    Good,
    /// `chatty`: prints what it is asked.
    Chatty,
    /// `wedge`: reads, never answers.
    Wedge,
    /// `wedge-mount`: never answers a mount.
    WedgeMount,
    /// `lose-mount`: mounts, and closes the connection instead of answering.
    LoseMount,
    /// `look`: looks at what it is to mount first.
    Look,
    /// `under-way`: is at the mount of an image for ever, and says so.
    UnderWay,
    /// `die-in-mount`: exits with status 5 instead of answering a mount.
    DieInMount,
    /// `die-after-mount`: exits with status 6 as soon as the answer to a mount is out.
    DieAfterMount,
    /// `die-in-look`: exits with status 4 when asked what is in flight, and leaves that connection to a child.
    DieInLook,
    /// `init`: its state is INIT for ever.
    Init,
    /// `half`: half an answer, then the connection ends.
    Half,
    /// `garbage`: not HTTP.
    Garbage,
    /// `html`: HTTP, but no API.
    Html,
    /// `huge-body`: an answer of 10 MiB.
    HugeBody,
    /// `echo`: prints what it is asked to mount, and refuses with it.
    Echo,
    /// `wedge-later`: says once that it runs, and answers no GET after that.
    WedgeLater,
    /// `refuse-mount`: no such directory.
    RefuseMount,
    /// `refuse-image`: mounts directories, and no image.
    RefuseImage,
    /// `uncounted`: has no counters, and remembers one more failed read of a blob each time it is asked, up to three.
    Uncounted,
    /// `die-after-image`: as `die-after-mount`, after an image's.
    DieAfterImage,
}

impl Conduct {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "chatty" => Self::Chatty,
            "wedge" => Self::Wedge,
            "wedge-mount" => Self::WedgeMount,
            "lose-mount" => Self::LoseMount,
            "look" => Self::Look,
            "under-way" => Self::UnderWay,
            "die-in-mount" => Self::DieInMount,
            "die-after-mount" => Self::DieAfterMount,
            "die-in-look" => Self::DieInLook,
            "init" => Self::Init,
            "half" => Self::Half,
            "garbage" => Self::Garbage,
            "html" => Self::Html,
            "huge-body" => Self::HugeBody,
            "echo" => Self::Echo,
            "wedge-later" => Self::WedgeLater,
            "refuse-mount" => Self::RefuseMount,
            "refuse-image" => Self::RefuseImage,
            "uncounted" => Self::Uncounted,
            "die-after-image" => Self::DieAfterImage,
            _ => return None,
        })
    }
}

type Mounts = Arc<Mutex<HashSet<String>>>;

/// Serves until it is to die; then the status to exit with. Connections have threads of their own: one that is
/// wedged must not look like a daemon that is.
pub(crate) fn serve(api: &UnixListener, conduct: Conduct) -> io::Result<ExitCode> {
    let mounts = Mounts::default();
    let (die, dying) = std::sync::mpsc::channel();
    let api = api.try_clone()?;
    std::thread::spawn(move || {
        for stream in api.incoming().flatten() {
            let (mounts, die) = (mounts.clone(), die.clone());
            std::thread::spawn(move || {
                // A connection that breaks is the client's choice.
                if let Ok(Some(code)) = converse(stream, conduct, &mounts) {
                    let _ = die.send(code);
                }
            });
        }
    });
    Ok(dying.recv().map_err(io::Error::other)?.into())
}

struct Request {
    method: String,
    target: String,
    body: String,
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next(), words.next());
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    Ok(method
        .zip(target)
        .map(|(method, target)| Request { method, target, body }))
}

fn answer(stream: &mut UnixStream, status: u16, body: &str) -> io::Result<()> {
    // As nydusd: an empty reason phrase, and no length for an empty body.
    let head = format!("HTTP/1.1 {status} \r\nServer: Nydus API\r\nConnection: keep-alive\r\n");
    if body.is_empty() {
        return write!(stream, "{head}\r\n");
    }
    write!(
        stream,
        "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn info(state: &str, collection: &str) -> String {
    format!(
        r#"{{"version":{{"package_ver":"0.0.0","git_commit":"","build_time":"","profile":"","rustc":""}},"id":null,"supervisor":null,"state":"{state}","backend_collection":{collection}}}"#
    )
}

/// The mounts as in `GET /api/v1/daemon`; places in the tests need no decoding.
fn collection(mounts: &HashSet<String>) -> String {
    let entry = |place: &String| {
        format!(
            r#""{place}":{{"backend_type":"Rafs","mountpoint":"{place}","mounted_time":"","config":null}}"#
        )
    };
    format!("{{{}}}", mounts.iter().map(entry).collect::<Vec<_>>().join(","))
}

fn other(text: &str) -> String {
    format!(r#"{{"code":"UNDEFINED","message":"Mount(MountFilesystem(Other(\"{text}\")))"}}"#)
}

/// Up to three reads that failed, one more each time; the set of mounts remembers.
fn failures(mounts: &Mounts) -> String {
    let mut held = mounts.lock().unwrap_or_else(PoisonError::into_inner);
    let before = held.iter().filter(|place| place.starts_with("failed ")).count();
    held.insert(format!("failed {before}"));
    let count = (before + 1).min(3);
    let errors: Vec<String> = ["one", "two", "three"][..count]
        .iter()
        .map(|n| format!("\"Tue, 24 Nov 2026 05:15:17 GMT - Request({n})\""))
        .collect();
    let errors = errors.join(",");
    format!(
        r#"{{"max_errors":500,"total_errors":{count},"max_size":51200,"total_size":99,"errors":[{errors}]}}"#
    )
}

/// Whether this is the first time; the set of mounts remembers.
fn first_of(mounts: &Mounts) -> bool {
    let mut held = mounts.lock().unwrap_or_else(PoisonError::into_inner);
    held.insert("once".to_owned())
}

/// Answers one connection's requests; `Some` is the status the daemon is to exit with.
fn converse(mut stream: UnixStream, conduct: Conduct, mounts: &Mounts) -> io::Result<Option<u8>> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        let place = request
            .target
            .split_once("mountpoint=")
            .map(|(_, p)| p.to_owned());
        if conduct == Conduct::Chatty {
            // Panics when nobody can read it: then the test sees a daemon that died.
            println!("{}", request.target);
        }
        let is_mount = request.method == "POST";
        if conduct == Conduct::Look && is_mount {
            let command: serde_json::Value = serde_json::from_str(&request.body)?;
            // Whatever comes of it.
            let _ = command["source"].as_str().map(std::fs::metadata);
        }
        let is_image = place.as_ref().is_some_and(|place| place.starts_with("/rafs/"));
        match conduct {
            Conduct::Wedge => loop {
                std::thread::park();
            },
            Conduct::WedgeMount if is_mount => loop {
                std::thread::park();
            },
            Conduct::UnderWay if is_mount && is_image => loop {
                std::thread::park();
            },
            Conduct::UnderWay if is_image => {
                let body = r#"{"code":"WrongState","message":"is being mounted by another request"}"#;
                answer(&mut stream, 400, body)?;
            }
            Conduct::WedgeLater if request.method == "GET" && !first_of(mounts) => loop {
                std::thread::park();
            },
            Conduct::Echo if is_mount => {
                println!("[2026-01-01 00:00:00.0 +00:00] INFO mount {}", request.body);
                eprint!("{:?} unfinished {}", request.body, request.body);
                let message = serde_json::Value::String(format!("LoadConfig {}", request.body));
                let body = format!(r#"{{"code":"UNDEFINED","message":{message}}}"#);
                answer(&mut stream, 500, &body)?;
            }
            Conduct::DieInMount if is_mount => return Ok(Some(5)),
            Conduct::DieInLook if request.target.ends_with("/inflight") => {
                let _child = Command::new("/bin/sleep")
                    .arg("1000")
                    .stdin(OwnedFd::from(stream))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()?;
                return Ok(Some(4));
            }
            Conduct::Half => {
                stream.write_all(b"HTTP/1.1 200 \r\nContent-Length: 400\r\n\r\n{\"version\":")?;
                return Ok(None);
            }
            Conduct::Garbage => {
                stream.write_all(b"\x00\x01 this is not HTTP at all\r\n\r\n")?;
                return Ok(None);
            }
            Conduct::Html => answer(&mut stream, 200, "<html>It works!</html>")?,
            Conduct::HugeBody => answer(&mut stream, 200, &"x".repeat(10 << 20))?,
            Conduct::RefuseMount if is_mount => {
                let text = "passthroughfs failed to handle request, No such file or directory (os error 2)";
                answer(&mut stream, 500, &other(text))?;
            }
            Conduct::RefuseImage if is_mount && is_image => {
                let text = "RAFS failed to handle request, FillSuperblock(invalid RAFS superblock)";
                answer(&mut stream, 500, &other(text))?;
            }
            Conduct::Uncounted if request.target.contains("/metrics/") => {
                let body = r#"{"code":"UNDEFINED","message":"BackendMetrics(Metrics(Stats(NoCounter)))"}"#;
                answer(&mut stream, 404, body)?;
            }
            Conduct::Uncounted if request.target.ends_with("/events") => {
                answer(&mut stream, 200, &failures(mounts))?;
            }
            Conduct::Init if request.method == "GET" => answer(&mut stream, 200, &info("INIT", "null"))?,
            _ => {
                let mut held = mounts.lock().unwrap_or_else(PoisonError::into_inner);
                let done = match (request.method.as_str(), place) {
                    ("GET", _) => {
                        let collection = match request.target.starts_with("/api/v1/") {
                            true => collection(&held),
                            false => "null".to_owned(),
                        };
                        answer(&mut stream, 200, &info("RUNNING", &collection))?;
                        continue;
                    }
                    ("POST", Some(place)) => held.insert(place),
                    ("PUT", Some(place)) => held.contains(&place),
                    ("DELETE", Some(place)) => held.remove(&place),
                    _ => {
                        answer(&mut stream, 404, r#"{"code":"UNDEFINED","message":"NoRoute"}"#)?;
                        continue;
                    }
                };
                if conduct == Conduct::LoseMount && is_mount && done {
                    return Ok(None);
                }
                match (done, is_mount) {
                    (true, _) => answer(&mut stream, 204, "")?,
                    (false, true) => {
                        answer(&mut stream, 500, &other("object or filesystem already exists"))?;
                    }
                    (false, false) => {
                        answer(&mut stream, 500, &other("object or filesystem doesn't exist"))?;
                    }
                }
                let dies = match conduct {
                    Conduct::DieAfterMount => is_mount,
                    Conduct::DieAfterImage => is_mount && is_image,
                    _ => false,
                };
                if dies {
                    // Its connection stays open until it is dead: who is hung up on asks on another one, which is
                    // answered for as long as there is a process.
                    let _open = stream.into_raw_fd();
                    return Ok(Some(6));
                }
            }
        }
    }
    Ok(None)
}
