//! The client against bytes: those of a genuine nydusd, and bad ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nydusbox_protocol::DaemonState;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(5);

fn peer() -> (TempDir, UnixListener, ApiClient) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = ApiClient::new(SocketPath::new(path).unwrap(), DEADLINE);
    (dir, listener, client)
}

/// Reads one request, head and body.
async fn request(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length: ")
                        .map(str::to_owned)
                })
                .map(|l| l.parse::<usize>().unwrap())
                .next();
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "{text}");
    }
}

const NO_CONTENT: &[u8] = b"HTTP/1.1 204 \r\nServer: Nydus API\r\nConnection: keep-alive\r\n\r\n";

/// As nydusd 2.2.0 sends it: empty reason phrase.
const INFO: &str = concat!(
    "HTTP/1.1 200 \r\nServer: Nydus API\r\nConnection: keep-alive\r\n",
    "Content-Type: application/json\r\nContent-Length: 246\r\n\r\n",
    r#"{"version":{"package_ver":"unknown","git_commit":"unknown","build_time":"2026-11-24T05:59:26.434457378Z","#,
    r#""profile":"release","rustc":"rustc 1.95.0 (59807616e 2026-04-14)"},"id":null,"supervisor":null,"#,
    r#""state":"RUNNING","backend_collection":null}"#
);

fn info() -> Vec<u8> {
    let (head, body) = INFO.split_once("\r\n\r\n").unwrap();
    let head = head.replace("246", &body.len().to_string());
    format!("{head}\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn several_calls_share_one_connection() {
    let (_dir, listener, mut client) = peer();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        for answer in [info(), NO_CONTENT.to_vec(), NO_CONTENT.to_vec()] {
            seen.push(request(&mut stream).await);
            stream.write_all(&answer).await.unwrap();
        }
        seen
    };
    let calls = async {
        assert_eq!(client.daemon_info().await.unwrap().state, DaemonState::Running);
        let at = MountPoint::new("/rafs/a+b/lowerdir").unwrap();
        let command = MountCommand::rafs("/boot", "{\"version\":2}").into();
        client.mount(&at, &command).await.unwrap();
        client.unmount(&at).await.unwrap();
    };
    let (seen, ()) = tokio::join!(server, calls);
    assert!(
        seen[0].starts_with("GET /api/v2/daemon HTTP/1.1\r\n"),
        "{}",
        seen[0]
    );
    assert!(seen[1].starts_with("POST /api/v1/mount?mountpoint=/rafs/a%2Bb/lowerdir HTTP/1.1\r\n"));
    assert!(seen[1].ends_with(r#"{"fs_type":"rafs","source":"/boot","config":"{\"version\":2}"}"#));
    assert!(
        !seen[1].to_ascii_lowercase().contains("transfer-encoding"),
        "{}",
        seen[1]
    );
    assert!(seen[2].starts_with("DELETE /api/v1/mount?mountpoint=/rafs/a%2Bb/lowerdir HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced() {
    let (_dir, listener, mut client) = peer();
    for _ in 0..3 {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            request(&mut stream).await;
            stream.write_all(&info()).await.unwrap();
        };
        let (info, ()) = tokio::join!(client.daemon_info(), server);
        info.unwrap();
    }
}

async fn answered_with(answer: &[u8], close: bool) -> CallError {
    let (_dir, listener, mut client) = peer();
    client.deadline = Duration::from_millis(200);
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        // The client may give up in the middle of a large answer.
        let _ = stream.write_all(answer).await;
        if close {
            drop(stream);
        } else {
            std::future::pending::<()>().await;
        }
        std::future::pending::<()>().await;
    };
    let at = MountPoint::containers();
    let command = MountCommand::passthrough("/share").into();
    tokio::select! {
        result = client.mount(&at, &command) => result.unwrap_err(),
        () = server => unreachable!("the server waits for ever"),
    }
}

#[tokio::test]
async fn bad_answers_have_names() {
    let refused = answered_with(
        b"HTTP/1.1 500 \r\nContent-Length: 93\r\n\r\n{\"code\":\"UNDEFINED\",\"message\":\"Mount(MountFilesystem(Other(\\\"object or filesystem already exists\\\")))\"}",
        false,
    );
    assert!(!matches!(refused.await, CallError::TimedOut { .. }));
    let error = answered_with(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", false).await;
    assert!(
        matches!(error, CallError::UnexpectedResponse { status: 200, .. }),
        "{error:?}"
    );
    let error = answered_with(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", false).await;
    assert!(matches!(error, CallError::NotHttp { .. }), "{error:?}");
    let error = answered_with(b"", true).await;
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    let error = answered_with(b"HTTP/1.1 204", true).await;
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    let error = answered_with(b"HTTP/1.1 500 \r\nContent-Length: 100\r\n\r\nhalf", true).await;
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    assert!(!error.is_definite());
}

#[tokio::test]
async fn an_answer_that_does_not_end_costs_the_deadline_only() {
    for partial in [
        b"".as_slice(),
        b"HTTP/1.1 ",
        b"HTTP/1.1 500 \r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        let error = answered_with(partial, false).await;
        assert!(matches!(error, CallError::TimedOut { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_huge_body_is_not_read_to_its_end() {
    let mut answer = format!("HTTP/1.1 500 \r\nContent-Length: {}\r\n\r\n", 10 << 20).into_bytes();
    answer.resize(10 << 20, b'x');
    let error = answered_with(&answer, false).await;
    assert!(matches!(error, CallError::BodyTooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_listening_is_unreachable_at_once() {
    let (dir, listener, mut client) = peer();
    drop(listener);
    let error = client.daemon_info().await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    drop(dir);
    let error = client.daemon_info().await.unwrap_err();
    match error {
        CallError::Unreachable { source } => assert_eq!(source.kind(), std::io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
}

/// A mount and its parts.
fn a_mount() -> (MountPoint, SharedCommand) {
    let at = MountPoint::new("/rafs/c1/lowerdir").unwrap();
    (at, MountCommand::rafs("/boot", "{\"version\":2}").into())
}

/// A client with a connection that it keeps, and the daemon's end of that.
async fn kept() -> (TempDir, UnixListener, ApiClient, UnixStream) {
    let (dir, listener, mut client) = peer();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        stream.write_all(&info()).await.unwrap();
        stream
    };
    let (stream, info) = tokio::join!(server, client.daemon_info());
    info.unwrap();
    (dir, listener, client, stream)
}

/// What has come, until it ends like this.
async fn until(stream: &mut UnixStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_mount_that_is_announced_is_one_request_whose_body_comes_later() {
    let (_dir, _listener, mut client, mut stream) = kept().await;
    let (at, command) = a_mount();
    client.announce(Endpoint::Mount, &at, &command);
    let head = until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("POST /api/v1/mount?mountpoint="), "{head}");
    let server = async {
        let body = until(&mut stream, "}").await;
        assert_eq!(body, command.json());
        stream.write_all(NO_CONTENT).await.unwrap();
    };
    let ((), mounted) = tokio::join!(server, client.mount(&at, &command));
    mounted.unwrap();
}

#[tokio::test]
async fn what_was_announced_and_is_not_asked_for_is_taken_back_with_its_connection() {
    for asked in [false, true] {
        let (_dir, listener, mut client, mut stream) = kept().await;
        let (at, command) = a_mount();
        client.announce(Endpoint::Mount, &at, &command);
        let mut seen = Vec::new();
        if !asked {
            client.withdraw();
            // Before anything else is asked.
            let closed = timeout(DEADLINE, stream.read_to_end(&mut seen)).await;
            closed.expect("the connection is closed").unwrap();
        }
        // Another call finds the connection gone, or makes it go.
        let server = async {
            let (mut fresh, _) = listener.accept().await.unwrap();
            let whole = request(&mut fresh).await;
            fresh.write_all(NO_CONTENT).await.unwrap();
            whole
        };
        let (whole, unmounted) = tokio::join!(server, client.unmount(&at));
        unmounted.unwrap();
        assert!(whole.starts_with("DELETE /api/v1/mount?"), "{whole}");
        stream.read_to_end(&mut seen).await.unwrap();
        assert!(seen.ends_with(b"\r\n\r\n"), "nothing but the head came");
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_up_on_what_is_announced_is_asked_anew() {
    let (_dir, listener, mut client, mut stream) = kept().await;
    let (at, command) = a_mount();
    client.announce(Endpoint::Mount, &at, &command);
    until(&mut stream, "\r\n\r\n").await;
    drop(stream);
    let server = async {
        let (mut fresh, _) = listener.accept().await.unwrap();
        let whole = request(&mut fresh).await;
        fresh.write_all(NO_CONTENT).await.unwrap();
        whole
    };
    let (whole, mounted) = tokio::join!(server, client.mount(&at, &command));
    mounted.unwrap();
    assert!(whole.ends_with(command.json()), "{whole}");
}
