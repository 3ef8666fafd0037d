//! A registry for tests that takes a blob by the book, but for what a test says.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::{Mutex, MutexGuard};

use super::sink::RegistrySink;
use super::test_server::{Asked, Reply, TestServer, reply};
use super::test_support::{chain, content, layer};
use super::upload::PIECE_BYTES;
use crate::source::{ImageSink, Put, sha256_of};

/// A registry that takes one blob by the book.
#[derive(Default)]
pub(super) struct Taker {
    /// `None` outside a session.
    pub(super) taken: Option<Vec<u8>>,
    complete: Option<Vec<u8>>,
    /// Locations are another one each time.
    steps: usize,
}

impl Taker {
    fn session(&mut self, status: u16) -> Reply {
        self.steps += 1;
        let size = self.taken.as_ref().map_or(0, Vec::len);
        reply(status)
            .header("Location", format!("../uploads/u?step={}", self.steps))
            .header("Range", format!("0-{}", size.saturating_sub(1)))
    }

    pub(super) fn answer(&mut self, asked: &Asked) -> Reply {
        let path = asked.target.split('?').next().unwrap();
        let in_session = path.ends_with("/blobs/uploads/u");
        if in_session && self.taken.is_none() {
            return reply(404);
        }
        if in_session && !asked.target.contains(&format!("step={}", self.steps)) {
            return reply(400);
        }
        match &*asked.method {
            "HEAD" => match &self.complete {
                Some(complete) if path.ends_with(sha256_of(complete).as_ref()) => {
                    reply(200).body(&**complete)
                }
                _ => reply(404),
            },
            "POST" => {
                self.taken = Some(Vec::new());
                self.session(202)
            }
            "GET" => self.session(204),
            "DELETE" => {
                self.taken = None;
                reply(204)
            }
            "PATCH" => {
                let taken = self.taken.as_mut().unwrap();
                let end = (taken.len() + asked.body.len()).saturating_sub(1);
                let range = format!("{}-{end}", taken.len());
                if asked.header("content-range") != Some(&*range) {
                    return reply(416);
                }
                taken.extend_from_slice(&asked.body);
                self.session(202)
            }
            "PUT" if in_session => {
                let mut taken = self.taken.take().unwrap();
                taken.extend_from_slice(&asked.body);
                let digest = sha256_of(&taken).to_string();
                if !asked.target.ends_with(&digest.replace(':', "%3A")) {
                    return reply(400);
                }
                self.complete = Some(taken);
                reply(201).header("Docker-Content-Digest", digest)
            }
            "PUT" => reply(201),
            _ => reply(405),
        }
    }
}

/// One that takes blobs by the book unless `otherwise` has another answer; it is given how many of the same kind came
/// before.
pub(super) fn taking(
    otherwise: impl Fn(&Asked, usize, MutexGuard<'_, Taker>) -> Option<Reply> + Send + Sync + 'static,
) -> TestServer {
    let taker = Mutex::new(Taker::default());
    TestServer::start(move |asked, before| {
        if let Some(reply) = otherwise(asked, before, taker.lock().unwrap()) {
            return reply;
        }
        taker.lock().unwrap().answer(asked)
    })
}

pub(super) fn put(sink: &RegistrySink, content: &[u8]) -> Result<Put, String> {
    sink.put(&layer(content), &content).map_err(|error| chain(&error))
}

/// Two and a half pieces.
pub(super) fn large() -> Vec<u8> {
    content(PIECE_BYTES * 5 / 2)
}

pub(super) fn methods(server: &TestServer) -> Vec<String> {
    server.asked().into_iter().map(|asked| asked.method).collect()
}
