//! One server: a request is authenticated, follows redirects, and is made again if it failed for the moment.
//!
//! Never chooses among servers (see `client.rs`) and never interprets content. Secrets are sent to the origin
//! they are for only: a redirect to another host, port or scheme goes without.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::auth::{Authorizer, NoProof, Proof, Scope, TokenRequest};
use super::challenge::{self, Challenge};
use super::clock::Clock;
use super::error::{RegistryError, TransportError};
use super::hosts::Server;
use super::retry::Retry;
use super::transport::{Answer, Transport};

/// As many as containerd follows.
const MAX_REDIRECTS: usize = 10;
/// What is read of an error's text, or of a token.
const SMALL_BODY_BYTES: u64 = 64 << 10;
const FORM: &str = "application/x-www-form-urlencoded";

/// A request, and what it is called in an error.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) scope: Scope,
    /// "manifest 12 of library/debian".
    pub(super) what: String,
}

/// A server and what is needed to talk to it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) server: Server,
    transport: Transport,
    auth: Authorizer,
    retry: Retry,
    clock: Arc<dyn Clock>,
}

/// An answer, or how talking failed; for the moment, either may be.
pub(super) enum Outcome {
    Answered(Box<Answer>),
    Lost(TransportError),
}

impl Endpoint {
    pub(super) fn new(
        server: Server,
        transport: Transport,
        auth: Authorizer,
        retry: Retry,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            server,
            transport,
            auth,
            retry,
            clock,
        }
    }

    /// The server's name for errors.
    pub(super) fn host(&self) -> String {
        authority(&self.server.base)
    }

    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.server.base.clone();
        url.set_path(&format!("{}{path}", self.server.base.path()));
        if let Some(namespace) = &self.server.mirror_of {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Makes the request, several times if need be; the answer has one of the statuses in `wanted`.
    pub(super) fn call(&self, ask: &Ask, wanted: &[StatusCode]) -> Result<Answer, RegistryError> {
        let answer = self.persist(|| self.authenticated(ask))?;
        if wanted.contains(&answer.status) {
            Ok(answer)
        } else {
            Err(self.refusal(ask, answer))
        }
    }

    /// Makes the request once. What came of it, be it for the moment or not, is the caller's to judge.
    pub(super) fn attempt(&self, ask: &Ask) -> Result<Outcome, RegistryError> {
        self.authenticated(ask)
    }

    /// Makes the request once with `size` bytes of `content`. That can be read once only, so neither a redirect nor a
    /// token that is no longer taken is followed up. `Err` inside is the content's.
    pub(super) fn stream(
        &self,
        ask: &Ask,
        size: u64,
        content: &mut (dyn Read + Send),
    ) -> Result<io::Result<Outcome>, RegistryError> {
        let proof = self.resolve(&ask.scope, self.auth.proof(&ask.scope, self.clock.now()))?;
        let headers = self.headers(ask, &ask.url, proof.as_ref());
        let answered =
            self.transport
                .stream((ask.method.clone(), ask.url.clone(), headers), size, content)?;
        Ok(answered
            .map(|answer| answer.map_or_else(Outcome::Lost, |answer| Outcome::Answered(Box::new(answer)))))
    }

    /// Makes a request that tidies up, once, as what was asked before is sent; nobody needs its answer.
    pub(super) fn part(&self, ask: &Ask) {
        if let Proof::Ready(proof) = self.auth.proof(&ask.scope, self.clock.now()) {
            let headers = self.headers(ask, &ask.url, proof.as_ref());
            match self.transport.part(ask.method.clone(), ask.url.clone(), headers) {
                Ok(Ok(answer)) => tracing::debug!(what = ask.what, status = answer.status.as_u16(), "parted"),
                Ok(Err(error)) => tracing::debug!(what = ask.what, %error, "parted"),
                Err(error) => tracing::debug!(what = ask.what, %error, "parted"),
            }
        }
    }

    /// Waits before something is tried again; `false` if it was tried often enough.
    pub(super) fn wait(&self, attempt: u32, asked: Option<Duration>) -> bool {
        match self.retry.delay(attempt, asked, self.clock.scatter()) {
            Some(delay) => {
                self.clock.wait(delay);
                true
            }
            None => false,
        }
    }

    fn persist(&self, once: impl Fn() -> Result<Outcome, RegistryError>) -> Result<Answer, RegistryError> {
        let mut attempt = 1;
        loop {
            match once()? {
                Outcome::Answered(answer) => {
                    let for_the_moment = Retry::is_for_the_moment(answer.status.as_u16());
                    if !for_the_moment || !self.wait(attempt, retry_after(&answer)) {
                        return Ok(*answer);
                    }
                    tracing::debug!(
                        host = self.host(),
                        status = answer.status.as_u16(),
                        attempt,
                        "asking again"
                    );
                }
                Outcome::Lost(error) => {
                    if !error.is_for_the_moment() || !self.wait(attempt, None) {
                        return Err(RegistryError::Unreachable {
                            host: self.host(),
                            source: error,
                        });
                    }
                    tracing::debug!(host = self.host(), %error, attempt, "asking again");
                }
            }
            attempt += 1;
        }
    }

    /// One attempt, with what the server wants to see.
    fn authenticated(&self, ask: &Ask) -> Result<Outcome, RegistryError> {
        let proof = self.auth.proof(&ask.scope, self.clock.now());
        let mut sent = self.resolve(&ask.scope, proof)?;
        // A token may be found to be no longer valid, and its successor not to be enough.
        for _ in 0..2 {
            let answer = match self.follow(ask, sent.as_ref())? {
                Outcome::Answered(answer) if answer.status == StatusCode::UNAUTHORIZED => answer,
                other => return Ok(other),
            };
            // Not from the server itself, but from where it sent to.
            if !same_origin(&answer.url, &self.server.base) {
                return Ok(Outcome::Answered(answer));
            }
            let challenges = challenges_of(&answer);
            let over_tls = self.server.base.scheme() == "https";
            let proof = self
                .auth
                .challenged(&challenges, &ask.scope, sent.as_ref(), over_tls)
                .map_err(|problem| self.no_proof(problem))?;
            sent = self.resolve(&ask.scope, proof)?;
        }
        self.follow(ask, sent.as_ref())
    }

    fn resolve(&self, scope: &Scope, proof: Proof) -> Result<Option<HeaderValue>, RegistryError> {
        match proof {
            Proof::Ready(header) => Ok(header),
            Proof::Token(request) => self.token(scope, &request).map(Some),
        }
    }

    fn token(&self, scope: &Scope, request: &TokenRequest) -> Result<HeaderValue, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &request.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let (method, body) = match &request.form {
            Some(form) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
                (Method::POST, Some(form.reveal().to_owned().into()))
            }
            None => (Method::GET, None),
        };
        let asked_at = self.clock.now();
        let answer = self.persist(|| {
            let answer = self.transport.exchange(
                method.clone(),
                request.url.clone(),
                headers.clone(),
                body.clone(),
            )?;
            Ok(answer.map_or_else(Outcome::Lost, |answer| Outcome::Answered(Box::new(answer))))
        })?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.no_proof(NoProof::Refused));
            }
            status => {
                return Err(RegistryError::Status {
                    host: authority(&request.url),
                    what: "the request for a token".to_owned(),
                    status: status.as_u16(),
                    message: String::new(),
                });
            }
        }
        let mut text = Vec::new();
        let read = answer.content.take(SMALL_BODY_BYTES).read_to_end(&mut text);
        // One that breaks off can't be parsed.
        let granted = read.ok().and_then(|_| self.auth.granted(scope, &text, asked_at));
        granted.ok_or_else(|| RegistryError::NoToken { host: self.host() })
    }

    fn no_proof(&self, problem: NoProof) -> RegistryError {
        let host = self.host();
        match problem {
            NoProof::Refused if self.auth.has_credentials() => RegistryError::Unauthorized { host },
            NoProof::Refused | NoProof::NoCredentials => RegistryError::NoCredentials { host },
            NoProof::UnknownManner => RegistryError::UnknownChallenge { host },
            NoProof::BadTokenServer => RegistryError::BadTokenServer { host },
        }
    }

    fn follow(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Outcome, RegistryError> {
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let headers = self.headers(ask, &url, authorization);
            let answer =
                match self
                    .transport
                    .exchange(ask.method.clone(), url.clone(), headers, ask.body.clone())?
                {
                    Ok(answer) => Box::new(answer),
                    Err(error) => return Ok(Outcome::Lost(error)),
                };
            // The older ones leave open whether the method stays.
            let is_redirect = match ask.method {
                Method::GET | Method::HEAD => matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308),
                _ => matches!(answer.status.as_u16(), 307 | 308),
            };
            if !is_redirect {
                return Ok(Outcome::Answered(answer));
            }
            let bad = || RegistryError::BadRedirect {
                host: self.host(),
                what: ask.what.clone(),
            };
            let next = answer
                .header(LOCATION.as_str())
                .and_then(|to| answer.url.join(to).ok())
                .ok_or_else(bad)?;
            // Not from TLS to none: what is asked for by name would be anybody's to answer.
            let is_followed = next.scheme() == "https" || (next.scheme() == "http" && url.scheme() == "http");
            if !is_followed {
                return Err(bad());
            }
            url = next;
        }
        Err(RegistryError::TooManyRedirects {
            host: self.host(),
            what: ask.what.clone(),
            limit: MAX_REDIRECTS,
        })
    }

    fn headers(&self, ask: &Ask, url: &Url, authorization: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = ask.headers.clone();
        if same_origin(url, &self.server.base) {
            for (name, value) in &self.server.headers {
                let name = HeaderName::from_bytes(name.as_bytes());
                if let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_str(value.reveal())) {
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
            }
            if let Some(authorization) = authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
        }
        headers
    }

    /// What an answer with an unwanted status means.
    pub(super) fn refusal(&self, ask: &Ask, answer: Answer) -> RegistryError {
        // Where it was sent to answers for itself.
        let host = authority(&answer.url);
        let what = ask.what.clone();
        match answer.status {
            StatusCode::UNAUTHORIZED if lacks_scope(&answer) => RegistryError::Denied { host, what },
            StatusCode::UNAUTHORIZED => self.no_proof(NoProof::Refused),
            StatusCode::FORBIDDEN => RegistryError::Denied { host, what },
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what },
            StatusCode::PAYLOAD_TOO_LARGE => RegistryError::RequestTooLarge {
                host,
                what,
                size_bytes: ask.body.as_ref().map_or(0, |body| body.len() as u64),
            },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::TooManyRequests {
                host,
                retry_after_secs: retry_after(&answer).map(|time| time.as_secs()),
            },
            status => RegistryError::Status {
                host,
                what,
                status: status.as_u16(),
                message: message(answer),
            },
        }
    }
}

fn challenges_of(answer: &Answer) -> Vec<Challenge> {
    let values = answer.headers.get_all(WWW_AUTHENTICATE);
    challenge::parse(values.iter().filter_map(|value| value.to_str().ok()))
}

/// Whether the token is a good one, of somebody who may not do this. RFC 6750 has 403 for it, registries 401.
fn lacks_scope(answer: &Answer) -> bool {
    challenges_of(answer).iter().any(|challenge| {
        matches!(challenge, Challenge::Bearer { error: Some(error), .. } if error == "insufficient_scope")
    })
}

/// `host[:port]`, as an image's name has it.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// In seconds; the other form, a date, would need the server's clock.
pub(super) fn retry_after(answer: &Answer) -> Option<Duration> {
    let secs = answer.header(RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Duration::from_secs(secs))
}

/// The error body of OCI's distribution specification.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    /// Whatever the server likes.
    #[serde(default)]
    detail: serde_json::Value,
}

/// The server's own words, as far as they are a registry's.
fn message(answer: Answer) -> String {
    /// More is no sentence.
    const MAX_CHARS: usize = 300;
    let mut text = Vec::new();
    let read = answer.content.take(SMALL_BODY_BYTES).read_to_end(&mut text);
    let errors: Option<Errors> = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
    let Some(first) = errors.and_then(|errors| errors.errors.into_iter().next()) else {
        return String::new();
    };
    let mut words = if first.message.is_empty() {
        first.code
    } else {
        first.message
    };
    // Where Docker's registry has the reason of an "unknown error".
    if let Some(detail) = first.detail.as_str() {
        words = format!("{words}: {detail}");
    }
    words
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_CHARS)
        .collect()
}
