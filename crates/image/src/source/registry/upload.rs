//! A blob on its way to a registry: where a connection breaks, another one goes on.
//!
//! ```text
//! POST -> taken over from another repository, or a session
//! PATCH, PATCH, … (each piece is kept until it has arrived) -> PUT
//! or, where it takes no pieces, PUT with all of it
//! ```
//! A session that does not come to its end is cancelled (DELETE). What the answers mean is in `upload_answer.rs`; the
//! protocol is "Pushing blobs" of OCI's distribution specification 1.1.

use std::io::Read;
use std::time::Duration;

use hyper::body::Bytes;
use oci_spec::image::Descriptor;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};

use super::auth::Scope;
use super::endpoint::{Ask, Outcome, retry_after, same_origin};
use super::error::{RegistryError, TransportError};
use super::sink::RegistrySink;
use super::transport::Answer;
use super::upload_answer::{Verdict, at_end, at_piece, reached};
use crate::source::{BlobContent, Put, SinkError, Verified, blob_content};

/// A piece in bytes. Some registries take no larger ones.
pub(super) const PIECE_BYTES: usize = 4 << 20;
/// One that wants larger pieces than this can't be served: each is held in memory.
const MAX_PIECE_BYTES: usize = 64 << 20;
/// Says how large pieces have to be at least.
const MIN_PIECE: &str = "oci-chunk-min-length";
/// A connection that brought this much was a good one: breaks are counted anew.
const PROGRESS_BYTES: u64 = 1 << 20;
/// A registry that takes less of a piece than it is sent is sent the rest so often.
const MAX_PARTS: u32 = 16;
const BINARY: &str = "application/octet-stream";

/// A blob that a registry has not.
pub(super) struct Upload<'a> {
    sink: &'a RegistrySink,
    blob: &'a Descriptor,
    content: &'a dyn BlobContent,
    /// Its name in errors.
    what: String,
}

enum Begun {
    Mounted,
    Session(Session),
}

/// Where the registry takes the blob.
struct Session {
    /// Another one after each answer.
    location: Url,
    piece_bytes: usize,
}

/// How a session ended that nobody is to be blamed for.
enum Ended {
    Complete,
    /// The registry has not what it was sent: from the beginning, or not at all for this reason.
    Lost(Trouble),
    /// The same in one piece.
    Whole,
}

/// What came of a piece.
enum Sent {
    Arrived,
    Not(Ended),
}

/// Something that may be another way in a moment.
struct Trouble {
    error: RegistryError,
    asked: Option<Duration>,
}

impl From<RegistryError> for Trouble {
    fn from(error: RegistryError) -> Self {
        Self { error, asked: None }
    }
}

impl<'a> Upload<'a> {
    pub(super) fn new(sink: &'a RegistrySink, blob: &'a Descriptor, content: &'a dyn BlobContent) -> Self {
        Self {
            sink,
            blob,
            content,
            what: sink.blob_name(blob),
        }
    }

    pub(super) fn run(&self) -> Result<Put, SinkError> {
        let mut lost = 0;
        let mut lost_why = None;
        loop {
            let mut session = match self.begin() {
                Ok(Begun::Mounted) => return Ok(Put::Mounted),
                Ok(Begun::Session(session)) => session,
                // What came first says more: a disk that is full takes no session either, and gives no reason for that.
                Err(error) => return Err(lost_why.unwrap_or(error).into()),
            };
            let ended = self.send(&mut session);
            if !matches!(ended, Ok(Ended::Complete)) {
                self.cancel(&session);
            }
            let Trouble { error, asked } = match ended? {
                Ended::Complete => return Ok(Put::Written),
                Ended::Lost(trouble) => trouble,
                Ended::Whole => {
                    self.sink.send_whole();
                    continue;
                }
            };
            lost += 1;
            tracing::debug!(what = self.what, %error, "sent again from the beginning");
            if !self.sink.endpoint().wait(lost, asked) {
                return Err(error.into());
            }
            lost_why = Some(error);
        }
    }

    /// Takes the blob over from another repository, or opens a session.
    fn begin(&self) -> Result<Begun, RegistryError> {
        let sink = self.sink;
        let url = sink
            .endpoint()
            .url(&format!("{}/blobs/uploads/", sink.repository()));
        if let Some(from) = sink.mount_from() {
            let mut with_mount = url.clone();
            with_mount
                .query_pairs_mut()
                .append_pair("mount", self.blob.digest().as_ref())
                .append_pair("from", from);
            let scope = Scope::mount(sink.repository(), from);
            let ask = Ask {
                scope,
                ..self.ask(Method::POST, with_mount)
            };
            match sink
                .endpoint()
                .call(&ask, &[StatusCode::CREATED, StatusCode::ACCEPTED])
            {
                Ok(answer) if answer.status == StatusCode::CREATED => {
                    sink.check_stored(&answer, self.blob.digest(), &self.what)?;
                    return Ok(Begun::Mounted);
                }
                Ok(answer) => return self.session(&answer).map(Begun::Session),
                Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
                // Who may not read there, or where it is not known, may be able to push all the same.
                Err(error) => {
                    tracing::debug!(what = self.what, %error, from, "not taken over");
                    sink.refuse_mounts();
                }
            }
        }
        let ask = self.ask(Method::POST, url);
        let answer = sink
            .endpoint()
            .call(&ask, &[StatusCode::ACCEPTED])
            .map_err(|error| match error {
                RegistryError::NotFound { host, .. } => RegistryError::NotFound {
                    host,
                    what: format!("repository {}", sink.repository()),
                },
                error => sink.refused(error),
            })?;
        self.session(&answer).map(Begun::Session)
    }

    fn session(&self, answer: &Answer) -> Result<Session, RegistryError> {
        let least = answer
            .header(MIN_PIECE)
            .and_then(|least| least.trim().parse::<usize>().ok())
            .unwrap_or(0);
        Ok(Session {
            location: self.location(answer)?.ok_or_else(|| RegistryError::Nonsense {
                host: self.sink.endpoint().host(),
                what: self.what.clone(),
                missing: "where to send it",
            })?,
            piece_bytes: PIECE_BYTES.max(least),
        })
    }

    /// Where the next request goes, relative to the last one or not.
    fn location(&self, answer: &Answer) -> Result<Option<Url>, RegistryError> {
        let Some(text) = answer.header(LOCATION.as_str()) else {
            return Ok(None);
        };
        let bad = || RegistryError::BadRedirect {
            host: self.sink.endpoint().host(),
            what: self.what.clone(),
        };
        let mut url = answer.url.join(text).map_err(|_| bad())?;
        if answer.url.scheme() == "https" && url.scheme() == "http" {
            // A registry behind something that does TLS for it may not know that. Nothing is sent without, though.
            url.set_scheme("https").map_err(|()| bad())?;
            if !same_origin(&url, &answer.url) {
                return Err(bad());
            }
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad());
        }
        Ok(Some(url))
    }

    fn send(&self, session: &mut Session) -> Result<Ended, SinkError> {
        let content = blob_content::open(self.blob, self.content)?;
        let mut content = Verified::new(content, self.blob)?;
        let size = self.blob.size();
        let takes_pieces = !self.sink.wants_whole() && session.piece_bytes <= MAX_PIECE_BYTES;
        if size > PIECE_BYTES as u64 && !takes_pieces {
            return self.whole(session, &mut content);
        }
        if size <= session.piece_bytes as u64 {
            let all = self.read(&mut content, session.piece_bytes)?;
            return self.close(session, &all);
        }
        let mut at = 0;
        while at < size {
            let piece = self.read(&mut content, session.piece_bytes)?;
            let end = at + piece.len() as u64;
            if let Sent::Not(ended) = self.piece(session, at, &piece)? {
                return Ok(ended);
            }
            at = end;
        }
        self.close(session, &Bytes::new())
    }

    /// The next piece; a shorter one is the last. The blob's last bytes come only if all of it is right.
    fn read(&self, content: &mut dyn Read, most: usize) -> Result<Bytes, SinkError> {
        let mut piece = Vec::new();
        let read = content.take(most as u64).read_to_end(&mut piece);
        match read {
            Ok(_) => Ok(piece.into()),
            Err(source) => Err(SinkError::Content {
                digest: self.blob.digest().clone(),
                source,
            }),
        }
    }

    /// Sends what comes after the first `at` bytes.
    fn piece(&self, session: &mut Session, at: u64, piece: &Bytes) -> Result<Sent, RegistryError> {
        let end = at + piece.len() as u64;
        let mut from = at;
        let (mut failures, mut parts) = (0, 0);
        loop {
            let rest = piece.slice(usize::try_from(from - at).unwrap_or_default()..);
            let ask = self.patch(session, from, rest);
            let trouble = match self.sink.endpoint().attempt(&ask)? {
                Outcome::Answered(answer) => match at_piece(answer.status.as_u16()) {
                    Verdict::Taken => {
                        if let Some(location) = self.location(&answer)? {
                            session.location = location;
                        }
                        match answer.header("range").map_or(Some(end), reached) {
                            Some(now) if now == end => return Ok(Sent::Arrived),
                            Some(now) if (from + 1..end).contains(&now) && parts < MAX_PARTS => {
                                from = now;
                                parts += 1;
                                continue;
                            }
                            // Some say for ever what they had after the first piece, or nothing.
                            Some(now) if now == from => return Ok(Sent::Not(Ended::Whole)),
                            _ => return Ok(Sent::Not(Ended::Lost(self.lost().into()))),
                        }
                    }
                    Verdict::Moment => self.moment(&ask, *answer),
                    // A session that was opened just now: it is the piece that it does not know.
                    Verdict::Lost if from == 0 => return Ok(Sent::Not(Ended::Whole)),
                    Verdict::Lost => {
                        return Ok(Sent::Not(Ended::Lost(self.refusal(&ask, *answer).into())));
                    }
                    Verdict::Whole => return Ok(Sent::Not(Ended::Whole)),
                    Verdict::Refused => return Err(self.refusal(&ask, *answer)),
                },
                Outcome::Lost(error) => self.broken(error)?,
            };
            failures += 1;
            if !self.sink.endpoint().wait(failures, trouble.asked) {
                return Err(trouble.error);
            }
            tracing::debug!(what = self.what, error = %trouble.error, failures, "where does it go on?");
            match self.position(session)? {
                Some(now) if now == end => return Ok(Sent::Arrived),
                Some(now) if (at..end).contains(&now) => {
                    if now.saturating_sub(from) >= PROGRESS_BYTES {
                        failures = 0;
                    }
                    from = now;
                }
                _ => return Ok(Sent::Not(Ended::Lost(trouble.error.into()))),
            }
        }
    }

    /// Ends the session, with all of the content or with what was sent before.
    fn close(&self, session: &mut Session, content: &Bytes) -> Result<Ended, SinkError> {
        let mut failures = 0;
        loop {
            let ask = self.put(session, content.clone());
            let trouble = match self.sink.endpoint().attempt(&ask)? {
                Outcome::Answered(answer) => match at_end(answer.status.as_u16()) {
                    Verdict::Taken => {
                        self.sink.check_stored(&answer, self.blob.digest(), &self.what)?;
                        return Ok(Ended::Complete);
                    }
                    Verdict::Moment => self.moment(&ask, *answer),
                    Verdict::Lost => {
                        let why = self.refusal(&ask, *answer);
                        return self.complete_or(why.into());
                    }
                    Verdict::Whole | Verdict::Refused => return Err(self.refusal(&ask, *answer).into()),
                },
                Outcome::Lost(error) => self.broken(error)?,
            };
            failures += 1;
            if !self.sink.endpoint().wait(failures, trouble.asked) {
                return Err(trouble.error.into());
            }
            if self.sink.has_blob(self.blob)? {
                return Ok(Ended::Complete);
            }
            let sent_before = self.blob.size() - content.len() as u64;
            if self.position(session)? != Some(sent_before) {
                return Ok(Ended::Lost(trouble.error.into()));
            }
        }
    }

    /// Ends the session with all of the content, which is read while it is sent.
    fn whole(&self, session: &Session, content: &mut (dyn Read + Send)) -> Result<Ended, SinkError> {
        let mut ask = self.put(session, Bytes::new());
        ask.headers.remove(CONTENT_LENGTH);
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(BINARY));
        let outcome = self.sink.endpoint().stream(&ask, self.blob.size(), content)?;
        let outcome = outcome.map_err(|source| SinkError::Content {
            digest: self.blob.digest().clone(),
            source,
        })?;
        let trouble = match outcome {
            Outcome::Answered(answer) => match at_end(answer.status.as_u16()) {
                Verdict::Taken => {
                    self.sink.check_stored(&answer, self.blob.digest(), &self.what)?;
                    return Ok(Ended::Complete);
                }
                Verdict::Moment => return Ok(Ended::Lost(self.moment(&ask, *answer))),
                Verdict::Lost => self.refusal(&ask, *answer).into(),
                // The next session begins with another token.
                _ if answer.status == StatusCode::UNAUTHORIZED => self.refusal(&ask, *answer).into(),
                Verdict::Whole | Verdict::Refused => return Err(self.refusal(&ask, *answer).into()),
            },
            Outcome::Lost(error) => self.broken(error)?,
        };
        self.complete_or(trouble)
    }

    /// The answer that was lost may have been that all is well.
    fn complete_or(&self, trouble: Trouble) -> Result<Ended, SinkError> {
        Ok(match self.sink.has_blob(self.blob)? {
            true => Ended::Complete,
            false => Ended::Lost(trouble),
        })
    }

    /// How much the registry has; `None` if it doesn't know the session.
    fn position(&self, session: &mut Session) -> Result<Option<u64>, RegistryError> {
        let ask = self.ask(Method::GET, session.location.clone());
        let statuses = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED];
        match self.sink.endpoint().call(&ask, &statuses) {
            Ok(answer) => {
                if let Some(location) = self.location(&answer)? {
                    session.location = location;
                }
                Ok(answer.header("range").map_or(Some(0), reached))
            }
            Err(RegistryError::NotFound { .. } | RegistryError::Status { .. }) => Ok(None),
            Err(error) => Err(self.sink.refused(error)),
        }
    }

    /// Gives up what is half-sent.
    fn cancel(&self, session: &Session) {
        self.sink
            .endpoint()
            .part(&self.ask(Method::DELETE, session.location.clone()));
    }

    fn ask(&self, method: Method, url: Url) -> Ask {
        let mut headers = HeaderMap::new();
        if method == Method::POST {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Ask {
            method,
            url,
            headers,
            body: None,
            scope: self.sink.scope(),
            what: self.what.clone(),
        }
    }

    fn patch(&self, session: &Session, from: u64, content: Bytes) -> Ask {
        let mut ask = self.ask(Method::PATCH, session.location.clone());
        let last = from + (content.len() as u64).saturating_sub(1);
        if let Ok(range) = HeaderValue::from_str(&format!("{from}-{last}")) {
            ask.headers.insert(CONTENT_RANGE, range);
        }
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(BINARY));
        ask.body = Some(content);
        ask
    }

    fn put(&self, session: &Session, content: Bytes) -> Ask {
        let mut url = session.location.clone();
        url.query_pairs_mut()
            .append_pair("digest", self.blob.digest().as_ref());
        let mut ask = self.ask(Method::PUT, url);
        if content.is_empty() {
            ask.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        } else {
            ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static(BINARY));
            ask.body = Some(content);
        }
        ask
    }

    fn moment(&self, ask: &Ask, answer: Answer) -> Trouble {
        Trouble {
            asked: retry_after(&answer),
            error: self.refusal(ask, answer),
        }
    }

    /// What a connection that broke off means.
    fn broken(&self, error: TransportError) -> Result<Trouble, RegistryError> {
        let may_pass = error.is_for_the_moment();
        let error = RegistryError::Unreachable {
            host: self.sink.endpoint().host(),
            source: error,
        };
        match may_pass {
            true => Ok(error.into()),
            false => Err(error),
        }
    }

    fn refusal(&self, ask: &Ask, answer: Answer) -> RegistryError {
        self.sink.refused(self.sink.endpoint().refusal(ask, answer))
    }

    fn lost(&self) -> RegistryError {
        RegistryError::Lost {
            host: self.sink.endpoint().host(),
            what: self.what.clone(),
        }
    }
}
