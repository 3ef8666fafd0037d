//! The outer form both options share: one JSON object in standard base64 with padding.
//!
//! Both `encoding/base64.StdEncoding` of the snapshotter and Kata's `STANDARD` engine write exactly this. What is
//! decoded holds registry credentials, so an error has positions and sizes in it and never a byte of content.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;

/// The longest option value, in bytes. The configuration in it must fit a mount request (1 MiB).
pub const MAX_OPTION_LEN: usize = 1 << 20;

/// Why an option's value is not a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Longer than [`MAX_OPTION_LEN`].
    #[error("is {len} bytes long, at most {MAX_OPTION_LEN} are allowed")]
    TooLong {
        /// Length of the encoded value in bytes.
        len: usize,
    },
    /// Not base64 in the standard alphabet with padding.
    #[error("is not standard base64 with padding")]
    NotBase64,
    /// The decoded bytes are not JSON, or stop short.
    #[error("does not decode to JSON (line {line}, column {column})")]
    NotJson {
        /// From 1.
        line: usize,
        /// From 1; 0 at the start of a line.
        column: usize,
    },
    /// JSON, but something else than an object.
    #[error("decodes to JSON that is not an object")]
    NotAnObject,
    /// An object in which a field occurs twice or has a value of another type.
    #[error("has a field twice or of the wrong type (line {line}, column {column} of its JSON)")]
    Shape {
        /// From 1.
        line: usize,
        /// From 1; 0 at the start of a line.
        column: usize,
    },
}

/// Decodes one value. Unknown fields are left alone: newer snapshotters may add some.
pub(super) fn decode<T: DeserializeOwned>(value: &str) -> Result<T, DocumentError> {
    if value.len() > MAX_OPTION_LEN {
        return Err(DocumentError::TooLong { len: value.len() });
    }
    let json = STANDARD.decode(value).map_err(|_| DocumentError::NotBase64)?;
    // Else serde would take an array for a struct, field by field.
    let object = json
        .iter()
        .find(|byte| !byte.is_ascii_whitespace())
        .is_some_and(|&byte| byte == b'{');
    serde_json::from_slice(&json)
        .map_err(|error| refusal(&error))
        .and_then(|document| {
            if object {
                Ok(document)
            } else {
                Err(DocumentError::NotAnObject)
            }
        })
}

/// serde_json's own message quotes values.
fn refusal(error: &serde_json::Error) -> DocumentError {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        serde_json::error::Category::Data => DocumentError::Shape { line, column },
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => DocumentError::NotJson { line, column },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Document {
        a: Option<String>,
    }

    fn of(json: &str) -> Result<Document, DocumentError> {
        decode(&STANDARD.encode(json))
    }

    #[test]
    fn one_object_in_padded_standard_base64_is_read() {
        let some = |a: &str| Ok(Document { a: Some(a.into()) });
        assert_eq!(decode("eyJhIjoiPz8/In0="), some("???"));
        // The alphabet of URLs, missing padding, a line break, and bits that no encoder sets.
        for text in [
            "eyJhIjoiPz8_In0=",
            "eyJhIjoiPz8/In0",
            "eyJh\nIjoiPz8/In0=",
            "eyJhIjoiPz8/In1=",
        ] {
            assert_eq!(
                decode::<Document>(text),
                Err(DocumentError::NotBase64),
                "{text:?}"
            );
        }
        assert_eq!(of(" {\"a\":\"x\",\"new\":[1]}\n"), some("x"));
    }

    #[test]
    fn what_is_wrong_is_said_by_position() {
        assert_eq!(of("{\"a\":"), Err(DocumentError::NotJson { line: 1, column: 5 }));
        assert_eq!(of("{} {}"), Err(DocumentError::NotJson { line: 1, column: 4 }));
        assert_eq!(of("[\"x\"]"), Err(DocumentError::NotAnObject));
        assert_eq!(of("{\"a\":1}"), Err(DocumentError::Shape { line: 1, column: 6 }));
        assert!(matches!(
            of("{\"a\":\"x\",\"a\":\"y\"}"),
            Err(DocumentError::Shape { .. })
        ));
        assert!(matches!(of("\"SECRET\""), Err(DocumentError::Shape { .. })));
        assert!(matches!(of(""), Err(DocumentError::NotJson { .. })));
    }

    #[test]
    fn the_size_is_limited_before_anything_is_decoded() {
        let long = "A".repeat(MAX_OPTION_LEN + 4);
        assert_eq!(
            decode::<Document>(&long),
            Err(DocumentError::TooLong { len: long.len() })
        );
        // A mebibyte of base64 is read to its end: it is no JSON.
        assert!(matches!(
            decode::<Document>(&long[4..]),
            Err(DocumentError::NotJson { .. })
        ));
    }
}
