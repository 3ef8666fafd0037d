//! A blob on its way from a registry: where a connection breaks, another one goes on.
//!
//! Never verifies: the reader around it (`verify.rs`) sees one stream, whatever that was made of.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::auth::Scope;
use super::client::Client;
use super::endpoint::{Ask, Endpoint};
use super::error::RegistryError;
use super::transport::Content;

/// A connection that brought this much was a good one: breaks are counted anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What is downloaded.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) repository: String,
    /// After `/v2/`.
    pub(super) path: String,
    pub(super) accept: &'static str,
    /// Its name in errors.
    pub(super) what: String,
}

impl Wanted {
    /// For the bytes from the first to the last, or to the end.
    fn ask(&self, endpoint: &Endpoint, from: u64, to: Option<u64>) -> Ask {
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(self.accept))]);
        let last = to.map(|to| to.to_string()).unwrap_or_default();
        if (from > 0 || to.is_some())
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-{last}"))
        {
            headers.insert(RANGE, range);
        }
        Ask {
            method: Method::GET,
            url: endpoint.url(&self.path),
            headers,
            body: None,
            scope: Scope::pull(&self.repository),
            what: self.what.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Download {
    client: Arc<Client>,
    wanted: Wanted,
    server: usize,
    /// `None` after it broke, or where there is no more.
    content: Option<Content>,
    /// What of it was read before, by a connection that broke: the server gives all or nothing.
    again: u64,
    at: u64,
    /// Where it broke last, and how often in a row.
    broke_at: u64,
    failures: u32,
}

impl Download {
    pub(super) fn start(client: Arc<Client>, wanted: Wanted) -> Result<Self, RegistryError> {
        let opened = open(&client, &wanted, 0)?;
        Ok(Self {
            client,
            wanted,
            server: opened.server,
            content: opened.content,
            again: opened.again,
            at: 0,
            broke_at: 0,
            failures: 0,
        })
    }

    /// Waits until it is time to go on, or says that it is not worth it.
    fn broken(&mut self, source: io::Error) -> io::Result<()> {
        self.content = None;
        if self.at - self.broke_at >= PROGRESS_BYTES {
            self.failures = 0;
        }
        self.failures += 1;
        self.broke_at = self.at;
        let host = self.client.endpoint(self.server).host();
        tracing::debug!(host, at = self.at, error = %source, "download broke off");
        if self.client.wait_after(self.server, self.failures) {
            return Ok(());
        }
        Err(RegistryError::Interrupted {
            host,
            what: self.wanted.what.clone(),
            at_bytes: self.at,
            source,
        }
        .into())
    }
}

/// A server's answer to who wants the content from some byte on.
struct Opened {
    server: usize,
    /// `None` where there is nothing more.
    content: Option<Content>,
    /// How much of it is before that byte.
    again: u64,
}

/// The content from `at` on.
fn open(client: &Client, wanted: &Wanted, at: u64) -> Result<Opened, RegistryError> {
    let mut statuses = vec![StatusCode::OK, StatusCode::PARTIAL_CONTENT];
    // A connection may break after the last byte, before it was said that it was the last.
    if at > 0 {
        statuses.push(StatusCode::RANGE_NOT_SATISFIABLE);
    }
    let (server, answer) = client.call(
        |able| able.pull,
        |endpoint| wanted.ask(endpoint, at, None),
        &statuses,
    )?;
    let begins_at = match answer.status {
        StatusCode::PARTIAL_CONTENT => answer.header(CONTENT_RANGE.as_str()).and_then(begin_of),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            return Ok(Opened {
                server,
                content: None,
                again: 0,
            });
        }
        _ => Some(0),
    };
    let opened = |again| Opened {
        server,
        content: Some(answer.content),
        again,
    };
    match begins_at {
        Some(begin) if begin == at => Ok(opened(0)),
        // It does not do ranges.
        Some(0) => Ok(opened(at)),
        _ => Err(RegistryError::Nonsense {
            host: client.endpoint(server).host(),
            what: wanted.what.clone(),
            missing: "the range that was asked for",
        }),
    }
}

/// The bytes in `range`; `None` if the server gives all or nothing.
pub(super) fn part(
    client: &Client,
    wanted: &Wanted,
    range: Range<u64>,
) -> Result<Option<Vec<u8>>, RegistryError> {
    let statuses = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
    let last = range.end.saturating_sub(1);
    let mut failures = 0;
    loop {
        let ask = |endpoint: &Endpoint| wanted.ask(endpoint, range.start, Some(last));
        let (server, answer) = client.call(|able| able.pull, ask, &statuses)?;
        if answer.status == StatusCode::OK {
            return Ok(None);
        }
        let begins_at = answer.header(CONTENT_RANGE.as_str()).and_then(begin_of);
        let mut bytes = Vec::new();
        let length = range.end.saturating_sub(range.start);
        let read = answer.content.take(length).read_to_end(&mut bytes);
        let host = client.endpoint(server).host();
        match read {
            Ok(_) if begins_at == Some(range.start) && bytes.len() as u64 == length => {
                return Ok(Some(bytes));
            }
            Ok(_) => {
                return Err(RegistryError::Nonsense {
                    host,
                    what: wanted.what.clone(),
                    missing: "the range that was asked for",
                });
            }
            Err(source) => {
                failures += 1;
                if !client.wait_after(server, failures) {
                    return Err(RegistryError::Interrupted {
                        host,
                        what: wanted.what.clone(),
                        at_bytes: range.start + bytes.len() as u64,
                        source,
                    });
                }
            }
        }
    }
}

/// `at` of `bytes at-to/of`.
fn begin_of(content_range: &str) -> Option<u64> {
    content_range
        .trim()
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Reads what comes after the next `again` bytes, which becomes 0 unless the content ends before.
fn read_after(content: &mut Content, again: &mut u64, buf: &mut [u8]) -> io::Result<usize> {
    *again -= io::copy(&mut (&mut *content).take(*again), &mut io::sink())?;
    if *again > 0 { Ok(0) } else { content.read(buf) }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let content = match &mut self.content {
                Some(content) => content,
                None => {
                    let opened = open(&self.client, &self.wanted, self.at)?;
                    (self.server, self.again) = (opened.server, opened.again);
                    let Some(content) = opened.content else {
                        return Ok(0);
                    };
                    self.content.insert(content)
                }
            };
            match read_after(content, &mut self.again, buf) {
                Ok(_) if self.again > 0 => {
                    return Err(RegistryError::Nonsense {
                        host: self.client.endpoint(self.server).host(),
                        what: self.wanted.what.clone(),
                        missing: "what it gave before",
                    }
                    .into());
                }
                Ok(got) => {
                    self.at += got as u64;
                    return Ok(got);
                }
                Err(error) => self.broken(error)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{TestServer, reply};
    use super::super::test_support::{content, layer, read, source};

    #[test]
    fn a_connection_that_breaks_after_the_last_byte_costs_nothing() {
        let whole = content(300_000);
        for (missing, is_whole) in [(0, true), (1, false)] {
            let blob = layer(&whole);
            let served = whole[..whole.len() - missing].to_vec();
            let server = TestServer::start(move |asked, _| match asked.header("range") {
                // It says that there is one more byte.
                None => reply(200).body([&*served, b"x"].concat()).cut(served.len()),
                Some(_) => reply(416).body("no such bytes"),
            });
            let (source, _) = source(&server);
            let got = read(&source, &blob);
            assert_eq!(got.as_ref() == Ok(&whole), is_whole, "{:?}", got.err());
        }
    }
}
