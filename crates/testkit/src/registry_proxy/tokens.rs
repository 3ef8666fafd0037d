//! The token service: who gets a token, for what, and for how many requests.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::TokenRules;

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// None, one that nobody gave, or an expired one.
    Invalid,
    /// It is for something else.
    Scope,
}

impl Refusal {
    /// As RFC 6750 names it.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_token",
            Self::Scope => "insufficient_scope",
        }
    }
}

#[derive(Debug)]
struct Token {
    scopes: Vec<String>,
    left: u64,
}

/// The tokens that were given.
#[derive(Debug)]
pub(super) struct Tokens {
    rules: TokenRules,
    given: BTreeMap<String, Token>,
}

impl Tokens {
    pub(super) fn new(rules: TokenRules) -> Self {
        Self {
            rules,
            given: BTreeMap::new(),
        }
    }

    /// A new one for these scopes; `None` if the credentials are not right.
    pub(super) fn give(&mut self, authorization: Option<&str>, scopes: Vec<String>) -> Option<String> {
        if let Some((user, password)) = &self.rules.credentials {
            let right = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            if authorization != Some(right.as_str()) {
                return None;
            }
        }
        let token = format!("token-{}", self.given.len() + 1);
        let left = self.rules.requests_per_token;
        self.given.insert(token.clone(), Token { scopes, left });
        Some(token)
    }

    /// Takes one request from a token that allows `action` (`pull` or `push`) on `repository`, where there is one.
    pub(super) fn spend(
        &mut self,
        authorization: Option<&str>,
        repository: Option<&str>,
        action: &str,
    ) -> Result<(), Refusal> {
        let token = authorization
            .and_then(|header| self.given.get_mut(header.strip_prefix("Bearer ")?))
            .filter(|token| token.left > 0)
            .ok_or(Refusal::Invalid)?;
        let covers = |scope: &String| {
            let mut words = scope.splitn(3, ':');
            words.next() == Some("repository")
                && words.next() == repository
                && words
                    .next()
                    .is_some_and(|actions| actions.split(',').any(|each| each == action))
        };
        if repository.is_some() && !token.scopes.iter().any(covers) {
            return Err(Refusal::Scope);
        }
        token.left -= 1;
        Ok(())
    }
}
