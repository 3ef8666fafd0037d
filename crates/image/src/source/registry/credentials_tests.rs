#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use serde_json::json;

use super::*;

fn found(config: &serde_json::Value, host: &str) -> Result<Option<(String, String)>, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    match find(&file, Presence::Required, host, "team/app") {
        Ok(None) => Ok(None),
        Ok(Some(Credentials::Basic { user, password })) => Ok(Some((user, password.reveal().to_owned()))),
        Ok(Some(Credentials::IdentityToken(token))) => {
            Ok(Some((TOKEN_USER.to_owned(), token.reveal().to_owned())))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn pair(user: &str, password: &str) -> Result<Option<(String, String)>, String> {
    Ok(Some((user.to_owned(), password.to_owned())))
}

#[test]
fn credentials_are_found_under_every_name_docker_gives_a_host() {
    let config = json!({"auths": {
        "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:p:w")},
        "ghcr.io": {"identitytoken": "refresh"},
        "http://127.0.0.1:5000": {"username": "me", "password": "pw"},
        "quay.io": {},
        "parts.io": {"username": "all", "password": "1"},
        "parts.io/team": {"username": "team", "password": "2"},
        "parts.io/te": {"username": "other", "password": "3"},
        "parts.io/team/app/more": {"username": "other", "password": "4"},
    }, "unknown": 1});
    assert_eq!(found(&config, "docker.io"), pair("hub", "p:w"));
    assert_eq!(found(&config, "ghcr.io"), pair(TOKEN_USER, "refresh"));
    assert_eq!(found(&config, "127.0.0.1:5000"), pair("me", "pw"));
    assert_eq!(found(&config, "127.0.0.1:5001"), Ok(None));
    assert_eq!(found(&config, "parts.io"), pair("team", "2"));
    // Docker leaves an empty entry where a helper has the credentials.
    assert_eq!(found(&config, "quay.io"), Ok(None));
}

#[test]
fn a_damaged_configuration_is_named_and_nothing_of_it_repeated() {
    for config in [
        json!({"auths": {"h.io": {"auth": "hunter2"}}}),
        json!({"auths": {"h.io": {"auth": STANDARD.encode("hunter2")}}}),
        json!({"auths": "hunter2"}),
    ] {
        let sentence = found(&config, "h.io").unwrap_err();
        assert!(
            sentence.ends_with("config.json is not a configuration of docker"),
            "{sentence}"
        );
    }
}

#[test]
fn nobody_without_a_configuration_has_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    assert_eq!(find(&none, Presence::Optional, "h.io", "a").unwrap(), None);
    assert!(find(&none, Presence::Required, "h.io", "a").is_err());
}

/// A helper that stands for `docker-credential-X`, run by its path.
fn helper(script: &str, deadline: Duration) -> Result<Vec<u8>, io::Error> {
    let child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    Helper(child).answer("h.io", deadline)
}

#[test]
fn a_helper_is_asked_on_its_input_and_ended_at_its_deadline() {
    let long = Duration::from_secs(60);
    assert_eq!(helper("printf '[%s]' \"$(cat)\"", long).unwrap(), b"[h.io]");
    let error = helper("exec sleep 1000", Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let error = helper("exec yes", long).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_helper_that_is_not_installed_is_named() {
    let config = json!({"credHelpers": {"h.io": "nydusbox-no-such"}});
    assert_eq!(
        found(&config, "h.io").unwrap_err(),
        "credential helper docker-credential-nydusbox-no-such cannot be run"
    );
    let config = json!({"credsStore": "../../bin/sh"});
    assert!(found(&config, "h.io").unwrap_err().ends_with("cannot be run"));
}
