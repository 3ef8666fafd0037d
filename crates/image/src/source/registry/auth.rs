//! Who asks, in the words the server wants: nothing, a password, or a token.
//!
//! Owns the tokens of one server, and when a new one is needed. Never talks to anybody: `endpoint.rs` makes
//! the request for a token that [`Authorizer`] writes. The protocol is that of the distribution project's
//! "Token Authentication Specification".

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::Challenge;
use super::secret::{Credentials, Secret};

/// What a token lives if its server doesn't say, by the specification.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds: it has to be valid when it arrives.
const MARGIN: Duration = Duration::from_secs(5);
/// By this name a token server knows the program.
const CLIENT_ID: &str = "nydusbox";

/// What a request wants to do: `repository:library/debian:pull`, one or several.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope(Vec<String>);

impl Scope {
    pub(super) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    /// Whoever may push may look for what is there already.
    pub(super) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    /// To push, and to take blobs over from another repository.
    pub(super) fn mount(repository: &str, from: &str) -> Self {
        let Self(mut scopes) = Self::push(repository);
        scopes.extend(Self::pull(from).0);
        Self(scopes)
    }
}

/// How a server wants to know who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Manner {
    Basic,
    Bearer(TokenServer),
}

/// Who gives tokens for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TokenServer {
    realm: Url,
    service: Option<String>,
}

struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Default)]
struct State {
    /// `None` until the server has asked.
    manner: Option<Manner>,
    tokens: HashMap<Scope, Token>,
    /// What the server itself calls a scope: one that stands for another under a path of its own calls the repository
    /// otherwise.
    names: HashMap<Scope, Vec<String>>,
}

impl State {
    /// What a token for this scope is asked for: the scope in our words, and in the server's.
    fn scopes(&self, scope: &Scope) -> Vec<String> {
        let mut scopes = scope.0.clone();
        for name in self.names.get(scope).into_iter().flatten() {
            if !scopes.contains(name) {
                scopes.push(name.clone());
            }
        }
        scopes
    }
}

/// What one server is shown.
pub(super) struct Authorizer {
    credentials: Option<Credentials>,
    /// Never held while anybody is waited for: two who need a token at once may each get one.
    state: Mutex<State>,
}

/// What to send with a request.
#[derive(Debug)]
pub(super) enum Proof {
    /// This, or nothing.
    Ready(Option<HeaderValue>),
    /// The token that this request gives.
    Token(TokenRequest),
}

/// A request to a token server. Its `Debug` shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenRequest {
    pub(super) url: Url,
    /// `Authorization`, if the request is a GET with a password.
    pub(super) authorization: Option<HeaderValue>,
    /// If there is one, the request is a POST of this form.
    pub(super) form: Option<Secret>,
}

/// Why there is nothing to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoProof {
    /// It asks for credentials, and there are none.
    NoCredentials,
    /// It was shown what it asks for, and asks again.
    Refused,
    /// It asks for nothing that is known here.
    UnknownManner,
    /// Its token server can't be asked without showing credentials to everybody.
    BadTokenServer,
}

/// What a token server answers.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Authorizer {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            state: Mutex::default(),
        }
    }

    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// What a request with this scope is sent with, as far as the server has asked before.
    pub(super) fn proof(&self, scope: &Scope, now: Instant) -> Proof {
        let state = self.state();
        match &state.manner {
            None => Proof::Ready(None),
            Some(Manner::Basic) => Proof::Ready(self.basic()),
            Some(Manner::Bearer(server)) => match state.tokens.get(scope) {
                Some(token) if now + MARGIN < token.until => Proof::Ready(Some(token.header.clone())),
                _ => Proof::Token(self.token_request(server, &state.scopes(scope))),
            },
        }
    }

    /// What the request is to be sent with after it was answered with 401. `sent` is what it was sent with,
    /// `over_tls` whether the server was asked over TLS.
    pub(super) fn challenged(
        &self,
        challenges: &[Challenge],
        scope: &Scope,
        sent: Option<&HeaderValue>,
        over_tls: bool,
    ) -> Result<Proof, NoProof> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
                ..
            } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        let named = bearer.and_then(|(_, _, scope)| scope.as_deref());
        let manner = match bearer {
            Some((realm, service, _)) => {
                let realm: Url = realm.parse().map_err(|_| NoProof::BadTokenServer)?;
                let here = realm.host_str().is_some_and(super::name::is_loopback);
                if realm.scheme() != "https" && (realm.scheme() != "http" || (over_tls && !here)) {
                    return Err(NoProof::BadTokenServer);
                }
                Manner::Bearer(TokenServer {
                    realm,
                    service: service.clone(),
                })
            }
            None if challenges.is_empty() => return Err(NoProof::UnknownManner),
            None => Manner::Basic,
        };
        let mut state = self.state();
        // Somebody else may have got another token since.
        let newer = state
            .tokens
            .get(scope)
            .filter(|token| Some(&token.header) != sent)
            .map(|token| token.header.clone());
        if newer.is_none() {
            state.tokens.remove(scope);
        }
        state.manner = Some(manner.clone());
        if let Some(named) = named {
            let names = named.split_ascii_whitespace().map(str::to_owned).collect();
            state.names.insert(scope.clone(), names);
        }
        let scopes = state.scopes(scope);
        drop(state);
        match (manner, newer) {
            (Manner::Basic, _) if sent.is_some() => Err(NoProof::Refused),
            (Manner::Basic, _) => self
                .basic()
                .map(|header| Proof::Ready(Some(header)))
                .ok_or(NoProof::NoCredentials),
            (Manner::Bearer(_), Some(newer)) => Ok(Proof::Ready(Some(newer))),
            (Manner::Bearer(server), None) => Ok(Proof::Token(self.token_request(&server, &scopes))),
        }
    }

    /// Takes a token server's answer; gives what to send, or nothing if there is no token in it.
    pub(super) fn granted(&self, scope: &Scope, answer: &[u8], now: Instant) -> Option<HeaderValue> {
        let answer: TokenAnswer = serde_json::from_slice(answer).ok()?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if token.is_empty() {
            return None;
        }
        let header = sensitive(&format!("Bearer {token}"))?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        // A life that no clock can hold is one without an end.
        let until = now
            .checked_add(life)
            .unwrap_or(now + Duration::from_secs(24 * 3600));
        let token = Token {
            header: header.clone(),
            until,
        };
        self.state().tokens.insert(scope.clone(), token);
        Some(header)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn basic(&self) -> Option<HeaderValue> {
        match &self.credentials {
            Some(Credentials::Basic { user, password }) => sensitive(&format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{}", password.reveal()))
            )),
            Some(Credentials::IdentityToken(_)) | None => None,
        }
    }

    fn token_request(&self, server: &TokenServer, scopes: &[String]) -> TokenRequest {
        let mut url = server.realm.clone();
        if let Some(Credentials::IdentityToken(token)) = &self.credentials {
            // The OAuth2 form. A password needs no more than the older one, which every server has.
            let mut form = url.clone();
            form.set_query(None);
            {
                let mut pairs = form.query_pairs_mut();
                pairs.append_pair("grant_type", "refresh_token");
                pairs.append_pair("client_id", CLIENT_ID);
                pairs.append_pair("service", server.service.as_deref().unwrap_or_default());
                pairs.append_pair("scope", &scopes.join(" "));
                pairs.append_pair("refresh_token", token.reveal());
            }
            return TokenRequest {
                url,
                authorization: None,
                form: form.query().map(|form| Secret::new(form.to_owned())),
            };
        }
        {
            let mut pairs = url.query_pairs_mut();
            if let Some(service) = &server.service {
                pairs.append_pair("service", service);
            }
            for scope in scopes {
                pairs.append_pair("scope", scope);
            }
            pairs.append_pair("client_id", CLIENT_ID);
        }
        TokenRequest {
            url,
            authorization: self.basic(),
            form: None,
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer")
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// `None` if it has characters that no header can have.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}
