//! The standard variables of OpenTelemetry, as one value. Pure: it is handed a way to look a variable up.
//!
//! Known are `OTEL_EXPORTER_OTLP_{ENDPOINT,HEADERS,TIMEOUT,PROTOCOL}` and their `OTEL_EXPORTER_OTLP_TRACES_…` forms,
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_EXPORTER=none`, `OTEL_SDK_DISABLED`, and the
//! `TRACEPARENT` of whoever called. Every trace is sampled unless that caller's is not.

use std::fmt;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// The specification's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go, and with what.
#[derive(Clone)]
pub(super) struct Settings {
    /// `http`, with a host and a path.
    pub(super) endpoint: Uri,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// For one export.
    pub(super) timeout: Duration,
    /// Attributes of the resource; `service.name` is one of them.
    pub(super) resource: Vec<(String, String)>,
    pub(super) parent: Option<Parent>,
}

impl fmt::Debug for Settings {
    /// Leaves the headers out: they carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("timeout", &self.timeout)
            .field("resource", &self.resource)
            .field("parent", &self.parent)
            .finish_non_exhaustive()
    }
}

/// The span of the caller, in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
}

/// Why no span is exported although a collector is named. Values are not repeated: they may hold credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("use {variable}: not an http URL")]
    Endpoint { variable: &'static str },
    #[error("use {variable}: https is not built in, name a collector that takes http")]
    Https { variable: &'static str },
    #[error("use {variable}: only http/protobuf is built in")]
    Protocol { variable: &'static str },
    #[error("use {variable}: not a list of NAME=VALUE")]
    Headers { variable: &'static str },
    #[error("use {variable}: not a number of milliseconds")]
    Timeout { variable: &'static str },
}

impl Settings {
    /// `None` when no collector is named, or nothing is to be exported.
    pub(super) fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, SettingsError> {
        // The specification: an empty variable is one that is not set.
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let either = |own: &'static str, general: &'static str| {
            variable(own)
                .map(|value| (own, value))
                .or_else(|| variable(general).map(|value| (general, value)))
        };
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none");
        let (parent, sampled) = match variable("TRACEPARENT").as_deref().and_then(traceparent) {
            Some((parent, sampled)) => (Some(parent), sampled),
            None => (None, true),
        };
        let (own, general) = (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        );
        let Some((name, url)) = either(own, general).filter(|_| !off && sampled) else {
            return Ok(None);
        };
        let url = match name == own {
            true => url,
            false => format!("{}/v1/traces", url.trim_end_matches('/')),
        };
        let endpoint = endpoint(name, &url)?;
        if let Some((name, protocol)) = either(
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ) && protocol != "http/protobuf"
        {
            return Err(SettingsError::Protocol { variable: name });
        }
        let headers = match either("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS") {
            Some((variable, list)) => headers(&list).ok_or(SettingsError::Headers { variable })?,
            None => Vec::new(),
        };
        let timeout = match either("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT") {
            Some((variable, ms)) => match ms.trim().parse() {
                Ok(ms) => Duration::from_millis(ms),
                Err(_) => return Err(SettingsError::Timeout { variable }),
            },
            None => TIMEOUT,
        };
        let listed = variable("OTEL_RESOURCE_ATTRIBUTES").and_then(|list| pairs(&list));
        Ok(Some(Self {
            endpoint,
            headers,
            timeout,
            resource: resource(listed.unwrap_or_default(), variable("OTEL_SERVICE_NAME")),
            parent,
        }))
    }

    /// Adds an attribute to the resource, unless the environment has given it.
    pub(super) fn with_resource(mut self, key: &str, value: &str) -> Self {
        if !self.resource.iter().any(|(given, _)| given == key) {
            self.resource.push((key.to_owned(), value.to_owned()));
        }
        self
    }
}

fn endpoint(variable: &'static str, url: &str) -> Result<Uri, SettingsError> {
    let uri: Uri = url.parse().map_err(|_| SettingsError::Endpoint { variable })?;
    match uri.scheme_str() {
        Some("http") if uri.host().is_some() => Ok(uri),
        Some("https") => Err(SettingsError::Https { variable }),
        Some(_) | None => Err(SettingsError::Endpoint { variable }),
    }
}

fn resource(listed: Vec<(String, String)>, name: Option<String>) -> Vec<(String, String)> {
    const NAME: &str = "service.name";
    let mut resource = listed;
    if let Some(name) = name {
        resource.retain(|(key, _)| key != NAME);
        resource.push((NAME.to_owned(), name));
    } else if !resource.iter().any(|(key, _)| key == NAME) {
        resource.push((NAME.to_owned(), "nydusbox".to_owned()));
    }
    resource
}

/// `name=value,name=value` with values percent-encoded, as W3C Baggage has it.
fn pairs(list: &str) -> Option<Vec<(String, String)>> {
    list.split(',')
        .filter(|member| !member.trim().is_empty())
        .map(|member| {
            let (name, value) = member.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

fn headers(list: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    pairs(list)?
        .into_iter()
        .map(|(name, value)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        })
        .collect()
}

/// W3C Trace Context, section 3.2, and whether the trace is sampled. What is malformed is ignored, as demanded there.
fn traceparent(text: &str) -> Option<(Parent, bool)> {
    let mut fields = text.trim().split('-');
    let mut hex = |digits: usize| {
        let field = fields.next()?;
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let valid = field.len() == digits && field.bytes().all(lower);
        u128::from_str_radix(field, 16).ok().filter(|_| valid)
    };
    let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // A later version may have more fields, this one has not.
    let known = version != 0xff && (version != 0 || fields.next().is_none());
    let span_id = u64::try_from(span_id).ok()?;
    let parent = Parent { trace_id, span_id };
    Some((parent, flags & 1 == 1)).filter(|_| known && trace_id != 0 && span_id != 0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

    fn find(variables: &[(&str, &str)]) -> Result<Option<Settings>, SettingsError> {
        Settings::find(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn spans_go_below_the_general_endpoint_or_exactly_to_their_own() {
        let endpoint = |variables: &[(&str, &str)]| find(variables).unwrap().map(|s| s.endpoint.to_string());
        assert_eq!(endpoint(&[]), None);
        assert_eq!(endpoint(&[(GENERAL, "")]), None);
        for (given, used) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("http://[::1]:4318/otlp", "http://[::1]:4318/otlp/v1/traces"),
        ] {
            assert_eq!(endpoint(&[(GENERAL, given)]).as_deref(), Some(used));
        }
        let own = [
            (GENERAL, "http://c"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://d/x"),
        ];
        assert_eq!(endpoint(&own).as_deref(), Some("http://d/x"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_the_variables_name_and_not_its_value() {
        for (name, value) in [
            (GENERAL, "https://user:PLANTED@c"),
            (GENERAL, "PLANTED"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "PLANTED"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "PLANTED"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "PLANTED"),
        ] {
            let mut variables = vec![(name, value)];
            if name != GENERAL {
                variables.push((GENERAL, "http://c"));
            }
            let error = find(&variables).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("PLANTED"), "{error}");
        }
    }

    #[test]
    fn nothing_is_exported_when_it_is_switched_off_or_the_caller_is_not_sampled() {
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("TRACEPARENT", unsampled),
        ] {
            assert!(find(&[(GENERAL, "http://c"), (name, value)]).unwrap().is_none());
        }
    }

    #[test]
    fn headers_timeout_and_resource_are_those_of_the_environment() {
        let settings = find(&[
            (GENERAL, "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,host.name=h"),
            ("OTEL_SERVICE_NAME", "mine"),
        ]);
        let settings = settings.unwrap().unwrap();
        let headers: Vec<_> = settings
            .headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("api-key", "a b"), ("x", "1")]);
        assert!(!format!("{settings:?}").contains("a b"));
        assert_eq!(settings.timeout, Duration::from_millis(250));
        let text = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        assert_eq!(
            settings.resource,
            [("host.name", "h"), ("service.name", "mine")].map(text)
        );
        let plain = find(&[(GENERAL, "http://c")]).unwrap().unwrap();
        assert_eq!(plain.resource, [("service.name", "nydusbox")].map(text));
    }

    #[test]
    fn a_callers_span_is_taken_if_it_is_well_formed() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = Parent {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span_id: 0xb7ad_6b71_6920_3331,
        };
        assert_eq!(
            traceparent(&format!("00-{trace}-{span}-01")),
            Some((parent, true))
        );
        assert_eq!(
            traceparent(&format!("42-{trace}-{span}-00-more")),
            Some((parent, false))
        );
        for malformed in [
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-+{}-01", &span[1..]),
            "00".to_owned(),
        ] {
            assert_eq!(traceparent(&malformed), None, "{malformed}");
        }
    }
}
