//! What a server asks for with `WWW-Authenticate`: RFC 9110, section 11.
//!
//! Pure. Who answers is `auth.rs`.

/// A kind of authentication a server takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        /// What was wrong with the token that was shown, RFC 6750, section 3.1.
        error: Option<String>,
    },
}

/// The challenges in the values of the header, those that are known here only.
pub(super) fn parse<'v>(values: impl IntoIterator<Item = &'v str>) -> Vec<Challenge> {
    values.into_iter().flat_map(challenges).collect()
}

fn challenges(value: &str) -> Vec<Challenge> {
    // (scheme, its parameters); a part with neither `=` nor comma before it begins a new scheme.
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = value.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let word_end = rest.find([' ', ',', '=', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let after = after.trim_start_matches([' ', '\t']);
        if let Some(after) = after.strip_prefix('=')
            && let Some((_, parameters)) = schemes.last_mut()
        {
            let (text, left) = parameter_value(after.trim_start_matches([' ', '\t']));
            parameters.push((word.to_ascii_lowercase(), text));
            rest = left;
        } else if word.is_empty() {
            // Nothing that could be read: what follows would be guessed.
            break;
        } else {
            schemes.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    schemes
        .into_iter()
        .filter_map(|(scheme, parameters)| known(&scheme, &parameters))
        .collect()
}

fn known(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let parameter = |name: &str| {
        parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, text)| text.clone())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameter("realm")?,
            service: parameter("service"),
            scope: parameter("scope"),
            error: parameter("error"),
        }),
        _ => None,
    }
}

/// A token or a quoted string, and what is after it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_of_real_servers_are_understood() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
            error: None,
        };
        for (header, expected) in [
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                r#"bearer realm = "https://x/t", error="invalid_token" , basic realm=plain"#,
                vec![
                    Challenge::Bearer {
                        realm: "https://x/t".to_owned(),
                        service: None,
                        scope: None,
                        error: Some("invalid_token".to_owned()),
                    },
                    Challenge::Basic,
                ],
            ),
            (r#"Negotiate, Bearer service="x""#, vec![]),
            (r#"Bearer realm="a\"b"#, vec![bearer("a\"b", None, None)]),
            ("", vec![]),
        ] {
            assert_eq!(parse([header]), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "\\PC*") {
            let _ = parse([&*header]);
        }

        #[test]
        fn headers_of_this_alphabet_end_too(header in "[a =,\"\\\\]{0,40}") {
            let _ = parse([&*header]);
        }
    }
}
