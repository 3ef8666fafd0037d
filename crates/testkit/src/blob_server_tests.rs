//! The server as a plain client sees it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

fn server(content: &[u8]) -> (tempfile::TempDir, BlobServer) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("abc"), content).unwrap();
    let server = BlobServer::start(dir.path()).unwrap();
    (dir, server)
}

fn ask(server: &BlobServer, request: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(format!("{request}\r\n\r\n").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let at = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(all[..at].to_vec()).unwrap(), all[at..].to_vec())
}

#[test]
fn a_range_is_served_under_both_paths() {
    let (_dir, server) = server(b"0123456789");
    for path in ["/blobs/abc", "/v2/some/repo/blobs/sha256:abc"] {
        let (head, body) = ask(&server, &format!("GET {path} HTTP/1.1\r\nRange: bytes=2-5"));
        assert!(
            head.starts_with("HTTP/1.1 206 ") && head.contains("Content-Range: bytes 2-5/10\r\n"),
            "{head}"
        );
        assert_eq!(body, b"2345");
    }
    let (head, body) = ask(&server, "HEAD /blobs/abc HTTP/1.1");
    assert!(
        head.contains("Content-Length: 10\r\n") && body.is_empty(),
        "{head}"
    );
    assert!(
        ask(&server, "GET /blobs/../abc/none HTTP/1.1")
            .0
            .starts_with("HTTP/1.1 404")
    );
    assert_eq!(
        server.counters(),
        Counters {
            requests: 4,
            gets: 2,
            bytes: 8
        }
    );
}

#[test]
fn the_gate_holds_data_until_it_is_released() {
    let (_dir, server) = server(b"0123456789");
    server.hold();
    thread::scope(|scope| {
        let reader = scope.spawn(|| ask(&server, "GET /abc HTTP/1.1"));
        assert!(server.await_held(1, Duration::from_secs(10)));
        assert!(ask(&server, "HEAD /abc HTTP/1.1").0.starts_with("HTTP/1.1 200"));
        assert!(!reader.is_finished());
        server.release();
        assert_eq!(reader.join().unwrap().1, b"0123456789");
    });
}

#[test]
fn faults_are_injected_as_often_as_asked() {
    let (_dir, server) = server(b"0123456789");
    server.fail_next(Fault::Status(503), 2);
    for status in ["503", "503", "200"] {
        let (head, _) = ask(&server, "GET /abc HTTP/1.1");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    }
    server.fail_next(Fault::Truncate, 1);
    let (head, body) = ask(&server, "GET /abc HTTP/1.1");
    assert!(
        head.contains("Content-Length: 10\r\n") && body == b"01234",
        "{head}"
    );
    server.fail_next(Fault::Truncate, 3);
    server.fail_next(Fault::Truncate, 0);
    assert_eq!(
        ask(&server, "GET /abc HTTP/1.1").1,
        b"0123456789",
        "none any more"
    );
    server.fail_next(Fault::Short, 1);
    let (head, body) = ask(&server, "GET /abc HTTP/1.1");
    assert!(
        head.contains("Content-Length: 5\r\n") && body == b"01234",
        "{head}"
    );
    server.fail_next(Fault::Truncate, 3);
    server.fail_next(Fault::Truncate, 0);
    assert_eq!(ask(&server, "GET /abc HTTP/1.1").1, b"0123456789");
}

#[test]
fn every_third_request_goes_wrong_and_the_line_is_shared() {
    let (_dir, server) = server(&[7; 64 << 10]);
    server.set_conditions(Conditions {
        fault_every: Some((Fault::Status(503), 3)),
        // Two of three answers of 64 KiB each: half a second on this line, however many connections there are.
        bandwidth: Some(256 << 10),
        ..Conditions::default()
    });
    let start = Instant::now();
    let statuses: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| ask(&server, "GET /abc HTTP/1.1\r\nRange: bytes=0-65535").0))
            .collect();
        asked
            .into_iter()
            .map(|a| a.join().unwrap()[9..12].to_owned())
            .collect()
    });
    assert!(
        start.elapsed() >= Duration::from_millis(499),
        "{:?}",
        start.elapsed()
    );
    let count = |status: &str| statuses.iter().filter(|s| s.as_str() == status).count();
    assert_eq!((count("206"), count("503")), (2, 1), "{statuses:?}");
}

#[test]
fn jitter_differs_between_requests_and_stays_within_bounds() {
    let most = Duration::from_millis(50);
    let all: Vec<_> = (1..100).map(|n| jitter(n, most)).collect();
    assert!(all.iter().all(|j| *j < most));
    assert!(all.iter().max().unwrap() > &(most * 9 / 10) && all.iter().min().unwrap() < &(most / 10));
}
