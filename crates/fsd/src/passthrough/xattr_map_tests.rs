//! The rules beside a second reading of virtiofsd's documentation.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn rules(text: &str) -> XattrMap {
    text.parse().unwrap()
}

fn to_host(map: &XattrMap, name: &str) -> Result<String> {
    let name = CString::new(name).unwrap();
    map.to_host(&name).map(|host| host.to_str().unwrap().to_owned())
}

fn to_guest<'n>(map: &XattrMap, name: &'n str) -> Option<&'n str> {
    map.to_guest(name.as_bytes())
        .map(|guest| std::str::from_utf8(guest).unwrap())
}

/// virtiofsd's first example.
#[test]
fn everything_gets_a_prefix_and_what_has_none_is_hidden() {
    for text in [
        ":prefix:all::user.virtiofs.:\n:bad:all:::",
        ":map::user.virtiofs.:",
        " /map//user.virtiofs./ ",
    ] {
        let map = rules(text);
        assert_eq!(
            to_host(&map, "security.x").as_deref(),
            Ok("user.virtiofs.security.x")
        );
        assert_eq!(to_guest(&map, "user.virtiofs.security.x"), Some("security.x"));
        assert_eq!(to_guest(&map, "security.selinux"), None);
    }
}

/// virtiofsd's second example, and the `map` rule that it is.
#[test]
fn some_get_a_prefix_and_the_rest_passes() {
    let spelled = "/prefix/all/trusted./user.virtiofs./
        /bad/server//trusted./
        /bad/client/user.virtiofs.//
        /ok/all///";
    for text in [spelled, ":map:trusted.:user.virtiofs.:"] {
        let map = rules(text);
        assert_eq!(
            to_host(&map, "trusted.x").as_deref(),
            Ok("user.virtiofs.trusted.x")
        );
        assert_eq!(to_host(&map, "user.virtiofs.trusted.x"), Err(Errno::PERM));
        assert_eq!(to_host(&map, "user.y").as_deref(), Ok("user.y"));
        assert_eq!(to_guest(&map, "user.virtiofs.trusted.x"), Some("trusted.x"));
        assert_eq!(to_guest(&map, "trusted.overlay"), None);
        assert_eq!(to_guest(&map, "user.y"), Some("user.y"));
    }
}

#[test]
fn what_is_no_rule_is_named() {
    let why = |text: &str| text.parse::<XattrMap>().unwrap_err();
    assert_eq!(why("  "), XattrMapError::Empty);
    assert_eq!(why(":prefix:all:a:b"), XattrMapError::Incomplete { rule: 1 });
    let given = "off".to_owned();
    assert_eq!(
        why(":ok:all::: :off:all:::"),
        XattrMapError::Type { rule: 2, given }
    );
    let given = "guest".to_owned();
    assert_eq!(why(":ok:guest:::"), XattrMapError::Scope { rule: 1, given });
    assert_eq!(why(":map:a:b: :map:c:d:"), XattrMapError::AfterMap { rule: 2 });
    assert_eq!(
        why(":ok:server:::"),
        XattrMapError::Unterminated { side: "guest" }
    );
    assert_eq!(why(":ok:client:::"), XattrMapError::Unterminated { side: "host" });
    assert_eq!(
        why(":prefix:all:a:b:"),
        XattrMapError::Unterminated { side: "guest" }
    );
}

/// A rule as the documentation tells it: type, scope, key, prepend.
type Told = (&'static str, &'static str, String, String);

fn told() -> impl Strategy<Value = Told> {
    let kind = prop::sample::select(vec!["prefix", "ok", "bad", "unsupported"]);
    let scope = prop::sample::select(vec!["client", "server", "all"]);
    (kind, scope, "[ab.]{0,3}", "[ab.]{0,3}")
}

/// What becomes of a name, by the documentation's table.
fn expected(told: &[Told], scope: &str, name: &str) -> std::result::Result<String, &'static str> {
    for (kind, of, key, prepend) in told {
        let (begin, other) = if scope == "client" {
            (key, prepend)
        } else {
            (prepend, key)
        };
        if (*of != "all" && *of != scope) || !name.starts_with(begin.as_str()) {
            continue;
        }
        return match (*kind, scope) {
            ("prefix", "client") => Ok(format!("{other}{name}")),
            ("prefix", _) => Ok(name[begin.len()..].to_owned()),
            ("ok", _) => Ok(name.to_owned()),
            (kind, _) => Err(kind),
        };
    }
    Err("unterminated")
}

proptest! {
    #[test]
    fn the_first_rule_that_matches_decides(
        told in prop::collection::vec(told(), 0..5),
        delimiter in prop::sample::select(vec![':', '/', '|', 'ß']),
        between in prop::sample::select(vec!["", " ", "\n\t"]),
        name in "[ab.]{1,6}",
    ) {
        let mut told = told;
        told.push(("ok", "all", String::new(), String::new()));
        let text: Vec<String> = told
            .iter()
            .map(|(kind, scope, key, prepend)| {
                ["", kind, scope, key, prepend, ""].join(&delimiter.to_string())
            })
            .collect();
        let map: XattrMap = text.join(between).parse().unwrap();
        let host = expected(&told, "client", &name).map_err(|kind| match kind {
            "bad" => Errno::PERM,
            _ => Errno::OPNOTSUPP,
        });
        prop_assert_eq!(to_host(&map, &name), host);
        let guest = expected(&told, "server", &name).ok();
        prop_assert_eq!(to_guest(&map, &name), guest.as_deref());
    }

    #[test]
    fn any_text_is_rules_or_refused(text in ".{0,60}", name in "[a-z.]{1,20}") {
        if let Ok(map) = text.parse::<XattrMap>() {
            let _either = to_host(&map, &name);
            let _either = to_guest(&map, &name);
        }
    }

    /// With `map` and without a rule of its own, what a guest sets is what it finds.
    #[test]
    fn what_is_mapped_comes_back(key in "[ab]{0,2}", prepend in "[cd]{1,4}", name in "[abcd]{1,6}") {
        let map = rules(&format!(":map:{key}:{prepend}:"));
        if let Ok(host) = to_host(&map, &name) {
            prop_assert_eq!(to_guest(&map, &host), Some(name.as_str()));
        }
    }
}
