//! A mount's configuration as it may be shown: the same shape without secrets.

use serde_json::Value;

use crate::userinfo::value_without_userinfo;

/// Keys whose values are credentials wherever they stand in a configuration.
const SECRET_KEYS: &[&str] = &[
    "auth",
    "registry_token",
    "access_key_id",
    "access_key_secret",
    "encryption_key",
];

/// Blanks credentials in place. Strings stay strings, so that readers of nydusd's shape keep working.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if SECRET_KEYS.contains(&key.as_str()) {
                    if !value.is_null() {
                        *value = Value::String(String::new());
                    }
                } else if key == "external_backends" {
                    redact_external(value);
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::String(text) => *text = value_without_userinfo(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What an external backend has in its `config` is not known here, so none of it is shown.
fn redact_external(value: &mut Value) {
    if let Value::Array(backends) = value {
        for backend in backends {
            if let Some(config) = backend.get_mut("config") {
                *config = Value::Object(serde_json::Map::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_planted_secret_survives() {
        let mut config = json!({
            "backend": {
                "registry": {"auth": "SECRET1", "registry_token": "SECRET2", "host": "h",
                             "proxy": {"url": "http://SECRET3:SECRET4@proxy:3128/x@y", "ping_url": "http://p/"},
                             "places": ["http://SECRET9@a/", "http://b/ http://u:SECRET9@c/"]},
                "s3": {"access_key_id": "SECRET5", "access_key_secret": "SECRET6"},
                "oss": {"access_key_id": "SECRET5", "access_key_secret": "SECRET6"}
            },
            "external_backends": [{"type": "x", "config": {"anything": "SECRET7"}}],
            "cache": {"filecache": {"encryption_key": "SECRET8", "work_dir": "/c"}}
        });
        redact(&mut config);
        let text = config.to_string();
        assert!(!text.contains("SECRET"), "{text}");
        assert_eq!(
            config["backend"]["registry"]["proxy"]["url"],
            "http://proxy:3128/x@y"
        );
        assert_eq!(config["cache"]["filecache"]["work_dir"], "/c");
    }

    #[test]
    fn what_is_absent_stays_absent() {
        let mut config = json!({"backend": {"registry": {"auth": null}}});
        redact(&mut config);
        assert_eq!(config, json!({"backend": {"registry": {"auth": null}}}));
    }
}
