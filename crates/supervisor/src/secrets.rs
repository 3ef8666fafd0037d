//! What must not be shown, and text without it.
//!
//! The credentials in the configurations given to a daemon are known here, so whatever the daemon says (an error, a
//! line of its log) is searched for them before anyone sees it: nydusd prints and answers with its configuration in
//! several places. Finding credentials in a configuration is pure; nothing is ever forgotten, because a daemon may
//! repeat an old one. What is shorter than [`MIN_BYTES`] is not searched for, it would be found everywhere.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

/// Shortest credential that is searched for.
const MIN_BYTES: usize = 4;
/// How often a credential may be quoted and still be found: a configuration is a string inside a request, which a
/// daemon may repeat inside its own JSON, in Debug form.
const QUOTED: usize = 4;
/// Stands where a credential was.
const MASK: &str = "***";

/// Keys whose values are credentials wherever they stand in a nydusd configuration, v1 or v2.
const KEYS: [&str; 5] = [
    "auth",
    "registry_token",
    "access_key_id",
    "access_key_secret",
    "encryption_key",
];

/// The credentials of one sandbox. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<RwLock<Known>>);

#[derive(Default)]
struct Known {
    /// Longest first, so that none is cut by one that is a part of it.
    secrets: Vec<String>,
    /// Configurations that were not looked into yet.
    unread: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Learns the credentials of a configuration, JSON or TOML: before the next text is looked at, or when it is told
    /// to. A mount does not wait for it.
    pub(crate) fn learn_config(&self, config: &str) {
        self.write().unread.push(config.to_owned());
    }

    /// Learns one credential, and how it looks inside JSON and Debug strings.
    pub(crate) fn learn(&self, secret: &str) {
        self.write().learn(secret);
    }

    /// Looks into the configurations that were not looked into yet.
    pub(crate) fn read_configs(&self) {
        let mut known = self.write();
        for config in std::mem::take(&mut known.unread) {
            let mut found = Vec::new();
            match serde_json::from_str::<Value>(&config) {
                Ok(value) => collect(&value, &mut found),
                Err(_) => collect_lines(&config, &mut found),
            }
            found.iter().for_each(|secret| known.learn(secret));
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are known.
    fn read(&self) -> RwLockReadGuard<'_, Known> {
        let read = || self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = read();
        if known.unread.is_empty() {
            return known;
        }
        drop(known);
        self.read_configs();
        read()
    }

    /// The text without the credentials that are in it as a whole.
    pub(crate) fn mask_whole<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let known = self.read();
        let mut out = Cow::Borrowed(text);
        for secret in known.secrets.iter().filter(|s| text.contains(s.as_str())) {
            out = Cow::Owned(out.replace(secret.as_str(), MASK));
        }
        out
    }

    /// The text without credentials, nor the beginning of one at its end, where it may have been cut.
    pub(crate) fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut out = self.mask_whole(text);
        let known = self.read();
        let beginning = known
            .secrets
            .iter()
            .filter_map(|s| beginning_at_end(&out, s))
            .max();
        if let Some(len) = beginning {
            let kept = &out[..out.len() - len];
            out = Cow::Owned(format!("{kept}{MASK}"));
        }
        out
    }

    /// The length of the longest, in bytes; 0 when there is nothing to look for.
    pub(crate) fn longest(&self) -> usize {
        self.read().secrets.first().map_or(0, String::len)
    }
}

impl Known {
    fn learn(&mut self, secret: &str) {
        if secret.len() < MIN_BYTES {
            return;
        }
        let mut form = secret.to_owned();
        for _ in 0..=QUOTED {
            let next = quoted(&form);
            if !self.secrets.contains(&form) {
                self.secrets.push(form);
            }
            form = next;
        }
        self.secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
    }
}

/// How long a proper beginning of `secret` the text ends with.
fn beginning_at_end(text: &str, secret: &str) -> Option<usize> {
    let longest = secret.len().min(text.len() + 1).saturating_sub(1);
    (MIN_BYTES..=longest)
        .rev()
        .find(|&len| secret.is_char_boundary(len) && text.ends_with(&secret[..len]))
}

/// As it stands inside a JSON string; Rust's Debug differs in control characters only.
fn quoted(text: &str) -> String {
    let json = Value::String(text.to_owned()).to_string();
    json[1..json.len() - 1].to_owned()
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    (key, Value::String(secret)) if KEYS.contains(&key) => found.push(secret.clone()),
                    // What an external backend has in its configuration is not known here.
                    ("external_backends", value) => every_string(value, found),
                    (_, value) => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|v| collect(v, found)),
        Value::String(text) => userinfo(text, found),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The strings of `config` objects below, whatever their keys.
fn every_string(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                // The name of a kind of backend is no secret, and is a common word.
                if key != "type" {
                    every_string(value, found);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|v| every_string(v, found)),
        Value::String(text) => found.push(text.clone()),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// TOML, as far as it matters: `key = "value"`, one a line.
fn collect_lines(text: &str, found: &mut Vec<String>) {
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim();
        let Some(value) = value
            .strip_prefix(['"', '\''])
            .and_then(|v| v.split(['"', '\'']).next())
        else {
            continue;
        };
        if KEYS.contains(&key.trim().trim_matches('"')) {
            found.push(value.to_owned());
        } else {
            userinfo(value, found);
        }
    }
}

/// User and password of a URL, together and the password alone.
fn userinfo(text: &str, found: &mut Vec<String>) {
    let Some((_, rest)) = text.split_once("://") else {
        return;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    if let Some((userinfo, _)) = authority.rsplit_once('@') {
        found.push(userinfo.to_owned());
        if let Some((_, password)) = userinfo.split_once(':') {
            found.push(password.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn knowing(secrets: &[&str]) -> Secrets {
        let known = Secrets::default();
        secrets.iter().for_each(|s| known.learn(s));
        known
    }

    #[test]
    fn every_credential_of_a_configuration_is_found() {
        let v2 = json!({
            "version": 2,
            "backend": {"type": "registry",
                "registry": {"auth": "SECRET-1", "registry_token": "SECRET-2", "host": "registry.example",
                             "proxy": {"url": "http://user:SECRET-3@proxy:3128/x", "ping_url": "http://SECRET-4@p/"}},
                "oss": {"access_key_id": "SECRET-5", "access_key_secret": "SECRET-6"},
                "s3": {"access_key_id": "SECRET-7", "access_key_secret": "SECRET-8", "region": "eu"}},
            "external_backends": [{"type": "registry", "config": {"any": ["SECRET-9"]}}],
            "cache": {"filecache": {"encryption_key": "SECRET-10", "work_dir": "/cache"}}
        });
        let v1 =
            json!({"device": {"backend": {"type": "oss", "config": {"access_key_secret": "SECRET-11"}}}});
        let toml = "version = 2\n[backend.registry]\nhost = \"registry.example\"\nauth = \"SECRET-12\"\n\
                    [backend.registry.proxy]\nurl = 'http://u:SECRET-13@proxy'\n";
        let known = Secrets::default();
        for config in [&v2.to_string(), &v1.to_string(), toml, "neither", ""] {
            known.learn_config(config);
        }
        assert!(known.longest() > 0);
        for config in [v2.to_string(), format!("{v1:?}"), toml.to_owned()] {
            let masked = known.mask(&config);
            assert!(!masked.contains("SECRET"), "{masked}");
        }
        let plain = "registry.example eu /cache registry 3128";
        assert_eq!(known.mask(plain), plain, "nothing else is");
    }

    #[test]
    fn escaped_nested_and_cut_credentials_are_found() {
        let known = knowing(&["pa\"ss\\word", "pa"]);
        let inside = json!({"config": json!({"auth": "pa\"ss\\word"}).to_string()}).to_string();
        for text in [inside, format!("{:?}", "pa\"ss\\word"), "it is pa\"ss".to_owned()] {
            let masked = known.mask(&text);
            assert!(!masked.contains("ss"), "{masked}");
        }
        assert_eq!(known.mask("pa is too short"), "pa is too short");
    }

    proptest! {
        /// Wherever credentials stand in a text, and wherever it is cut, none of a length that tells is left.
        #[test]
        fn none_is_left(
            before in "[a-d ]{0,10}",
            secrets in proptest::collection::vec("[A-Z]{6,12}", 1..4),
            after in "[a-d ]{0,10}",
            cut in 0usize..60,
        ) {
            let refs: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let text = format!("{before}{}{after}", secrets.join("/"));
            let masked = knowing(&refs).mask(&text[..cut.min(text.len())]).into_owned();
            let capitals = masked.split(|c: char| !c.is_ascii_uppercase());
            prop_assert!(capitals.map(str::len).all(|run| run < MIN_BYTES), "{}", masked);
        }
    }
}
