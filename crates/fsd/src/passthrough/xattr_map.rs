//! Extended attributes under other names on the host than in the guest, by virtiofsd's `--xattrmap` rules. Pure.
//!
//! A rule is `:type:scope:key:prepend:` with any delimiter; rules are tried in order, and the first that matches
//! decides. What comes from the guest matches by `key`, what the host lists by `prepend`.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::str::FromStr;

use rustix::io::{Errno, Result};

/// Why rules are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XattrMapError {
    /// Nothing but blanks.
    #[error("there is no rule")]
    Empty,
    /// It ends in the middle.
    #[error("rule {rule} is not complete: each field ends with the character the rule begins with")]
    Incomplete {
        /// Its number, from 1.
        rule: usize,
    },
    /// An unknown type.
    #[error("rule {rule} has type {given:?}; there are prefix, ok, bad, unsupported and map")]
    Type {
        /// Its number, from 1.
        rule: usize,
        /// What stands there.
        given: String,
    },
    /// An unknown scope.
    #[error("rule {rule} has scope {given:?}; there are client, server and all")]
    Scope {
        /// Its number, from 1.
        rule: usize,
        /// What stands there.
        given: String,
    },
    /// `map` stands for rules that leave nothing to later ones.
    #[error("rule {rule} comes after a map rule, which must be the last")]
    AfterMap {
        /// Its number, from 1.
        rule: usize,
    },
    /// A name could match no rule.
    #[error("no rule matches every name of the {side}; end with :ok:all::: or :bad:all:::")]
    Unterminated {
        /// Whose names.
        side: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefix,
    Ok,
    Bad,
    Unsupported,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    kind: Kind,
    /// Names that come from the guest.
    client: bool,
    /// Names that the host lists.
    server: bool,
    key: Vec<u8>,
    prepend: Vec<u8>,
}

/// Rules, one of which matches each name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct XattrMap(Vec<Rule>);

impl XattrMap {
    /// The host's name for a guest's.
    ///
    /// # Errors
    /// `PERM` or `OPNOTSUPP`, as the rules say.
    pub(super) fn to_host<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        let bytes = name.to_bytes();
        let rule = self
            .0
            .iter()
            .find(|rule| rule.client && bytes.starts_with(&rule.key));
        match rule.map(|rule| (rule.kind, &rule.prepend)) {
            Some((Kind::Ok, _)) => Ok(Cow::Borrowed(name)),
            Some((Kind::Prefix, prepend)) => CString::new([prepend, bytes].concat())
                .map(Cow::Owned)
                .map_err(|_| Errno::INVAL),
            Some((Kind::Unsupported, _)) => Err(Errno::OPNOTSUPP),
            Some((Kind::Bad, _)) | None => Err(Errno::PERM),
        }
    }

    /// The guest's name for one that the host lists; `None` if the guest does not see it.
    pub(super) fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let rule = self
            .0
            .iter()
            .find(|rule| rule.server && name.starts_with(&rule.prepend))?;
        match rule.kind {
            Kind::Ok => Some(name),
            Kind::Prefix => name.strip_prefix(rule.prepend.as_slice()),
            Kind::Bad | Kind::Unsupported => None,
        }
    }

    fn check(self) -> std::result::Result<Self, XattrMapError> {
        for (side, ends) in [
            (
                "guest",
                self.0.iter().any(|rule| rule.client && rule.key.is_empty()),
            ),
            (
                "host",
                self.0.iter().any(|rule| rule.server && rule.prepend.is_empty()),
            ),
        ] {
            if !ends {
                return Err(XattrMapError::Unterminated { side });
            }
        }
        Ok(self)
    }
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> std::result::Result<Self, XattrMapError> {
        let mut rules = Vec::new();
        let mut rest = text.trim_ascii();
        let mut rule = 0;
        let mut after_map = false;
        while let Some(delimiter) = rest.chars().next() {
            rule += 1;
            if after_map {
                return Err(XattrMapError::AfterMap { rule });
            }
            rest = &rest[delimiter.len_utf8()..];
            let mut field = || {
                let (field, behind) = rest
                    .split_once(delimiter)
                    .ok_or(XattrMapError::Incomplete { rule })?;
                rest = behind;
                Ok(field)
            };
            let kind = match field()? {
                "prefix" => Kind::Prefix,
                "ok" => Kind::Ok,
                "bad" => Kind::Bad,
                "unsupported" => Kind::Unsupported,
                "map" => {
                    rules.extend(map(field()?, field()?));
                    after_map = true;
                    rest = rest.trim_ascii_start();
                    continue;
                }
                given => {
                    return Err(XattrMapError::Type {
                        rule,
                        given: given.to_owned(),
                    });
                }
            };
            let (client, server) = match field()? {
                "all" => (true, true),
                "client" => (true, false),
                "server" => (false, true),
                given => {
                    return Err(XattrMapError::Scope {
                        rule,
                        given: given.to_owned(),
                    });
                }
            };
            let (key, prepend) = (field()?.into(), field()?.into());
            rules.push(Rule {
                kind,
                client,
                server,
                key,
                prepend,
            });
            rest = rest.trim_ascii_start();
        }
        if rules.is_empty() {
            return Err(XattrMapError::Empty);
        }
        Self(rules).check()
    }
}

/// What `:map:key:prepend:` stands for: names with `key` get `prepend` before them, those that look as if they had
/// it already are nobody's, and others pass, or none if all get it.
fn map(key: &str, prepend: &str) -> Vec<Rule> {
    let rule = |kind, key: &str, prepend: &str| Rule {
        kind,
        client: true,
        server: true,
        key: key.into(),
        prepend: prepend.into(),
    };
    let mut rules = vec![rule(Kind::Prefix, key, prepend)];
    if key.is_empty() {
        rules.push(rule(Kind::Bad, "", ""));
    } else {
        rules.push(rule(Kind::Bad, prepend, key));
        rules.push(rule(Kind::Ok, "", ""));
    }
    rules
}

#[cfg(test)]
#[path = "xattr_map_tests.rs"]
mod tests;
