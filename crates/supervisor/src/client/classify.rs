//! What a refusal means: from the embedded daemon's codes, or from the Debug strings a stock nydusd sends.
//!
//! Pure. nydusd says `UNDEFINED` for everything, so its text decides; the wording below was read off nydusd 2.2.0
//! and 2.4.4. Of a text that is recognised people are shown what it is about; one that is not becomes
//! [`CallError::Refused`] with all of it.

use nydusbox_protocol::{ApiError, ErrorCode};

use super::CallError;

/// How much of an unexpected body is kept, in characters.
const PREFIX_CHARS: usize = 200;

/// The error for an answer that is not the expected success.
pub(crate) fn refusal(status: u16, body: &[u8]) -> CallError {
    let Ok(ApiError { code, message }) = serde_json::from_slice(body) else {
        return unexpected(status, body);
    };
    match code {
        ErrorCode::AlreadyMounted => CallError::AlreadyMounted,
        ErrorCode::NotMounted => CallError::NotMounted,
        ErrorCode::SlotsExhausted => CallError::SlotsExhausted,
        ErrorCode::BadImage => CallError::BadImage { message },
        ErrorCode::BadConfig => CallError::BadConfig { message },
        ErrorCode::BadSource => CallError::BadSource { message },
        ErrorCode::Undefined => stock(status, message),
        code => CallError::Refused {
            status,
            code,
            message,
        },
    }
}

/// The error for an answer that is no API answer at all.
pub(crate) fn unexpected(status: u16, body: &[u8]) -> CallError {
    // A little more than needed: invalid bytes become one character each.
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * PREFIX_CHARS)]);
    CallError::UnexpectedResponse {
        status,
        body_prefix: text.chars().take(PREFIX_CHARS).collect(),
    }
}

fn stock(status: u16, message: String) -> CallError {
    let says = |text: &str| message.contains(text);
    if says("already exists") {
        CallError::AlreadyMounted
    } else if says("doesn't exist") {
        CallError::NotMounted
    } else if says("vfs maximum mountpoints reached") {
        CallError::SlotsExhausted
    } else if says("FillSuperblock") || says("Failed to fill superBlock") {
        CallError::BadImage {
            message: plain(&message),
        }
    } else if says("LoadConfig") || says("Failed to load config") || says("CreateDevice") {
        CallError::BadConfig {
            message: plain(&message),
        }
    } else if says("passthroughfs failed to handle request") || says("VFS failed to handle request, Mount(Os")
    {
        CallError::BadSource {
            message: plain(&message),
        }
    } else {
        CallError::Refused {
            status,
            code: ErrorCode::Undefined,
            message,
        }
    }
}

/// What nydusd's Debug text is about: the step that failed and the text of the error in it, if they are where they are
/// known to be, and otherwise all of it.
fn plain(debug: &str) -> String {
    let within = |text: &str, begins: &str, ends: &str| {
        let (_, rest) = text.split_once(begins)?;
        Some(rest.rsplit_once(ends)?.0.to_owned())
    };
    let Some(quoted) = within(debug, "Other(\"", "\")") else {
        return debug.to_owned();
    };
    let said = quoted.replace("\\\"", "\"");
    let said = said
        .split_once("failed to handle request, ")
        .map_or(said.as_str(), |(_, what)| what);
    let step = said
        .split_once('(')
        .filter(|(step, _)| step.chars().all(char::is_alphanumeric));
    let detail = ["message: \"", "error: \""]
        .iter()
        .find_map(|begins| within(said, begins, "\""));
    match (step, detail) {
        (Some((step, _)), Some(detail)) => format!("{step}: {detail}"),
        _ => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies as a genuine nydusd 2.2.0 sent them.
    const STOCK: &[(u16, &str, &str)] = &[
        (
            500,
            r#"Mount(MountFilesystem(Other(\"object or filesystem already exists\")))"#,
            "AlreadyMounted",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"object or filesystem doesn't exist\")))"#,
            "NotMounted",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"VFS failed to handle request, FsIndex(Custom { kind: Other, error: \\\"vfs maximum mountpoints reached\\\" })\")))"#,
            "SlotsExhausted",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"RAFS failed to handle request, FillSuperblock(Os { code: 2, kind: NotFound, message: \\\"No such file or directory\\\" })\")))"#,
            "BadImage",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"RAFS failed to handle request, FillSuperblock(Custom { kind: Other, error: \\\"invalid RAFS superblock\\\" })\")))"#,
            "BadImage",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"RAFS failed to handle request, FillSuperblock(Error { kind: UnexpectedEof, message: \\\"failed to fill whole buffer\\\" })\")))"#,
            "BadImage",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"RAFS failed to handle request, LoadConfig(Os { code: 22, kind: InvalidInput, message: \\\"Invalid argument\\\" })\")))"#,
            "BadConfig",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"RAFS failed to handle request, CreateDevice(Os { code: 5, kind: Uncategorized, message: \\\"Input/output error\\\" })\")))"#,
            "BadConfig",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"passthroughfs failed to handle request, No such file or directory (os error 2)\")))"#,
            "BadSource",
        ),
        (
            500,
            r#"Mount(MountFilesystem(Other(\"VFS failed to handle request, Mount(Os { code: 20, kind: NotADirectory, message: \\\"Not a directory\\\" })\")))"#,
            "BadSource",
        ),
        (
            400,
            r#"ParseBody(Error(\"missing field `config`\", line: 1, column: 47))"#,
            "Refused",
        ),
        (404, "NoRoute", "Refused"),
    ];

    fn kind(error: &CallError) -> String {
        let debug = format!("{error:?}");
        debug.split([' ', '{']).next().unwrap_or_default().to_owned()
    }

    #[test]
    fn stock_nydusds_texts_are_understood() {
        for (status, message, expected) in STOCK {
            let body = format!(r#"{{"code":"UNDEFINED","message":"{message}"}}"#);
            assert_eq!(&kind(&refusal(*status, body.as_bytes())), expected, "{message}");
        }
    }

    #[test]
    fn what_is_understood_is_shown_without_its_wrapping() {
        let shown = |message: &str| {
            let body = format!(r#"{{"code":"UNDEFINED","message":"{message}"}}"#);
            match refusal(500, body.as_bytes()) {
                CallError::BadImage { message }
                | CallError::BadConfig { message }
                | CallError::BadSource { message } => message,
                other => panic!("{other:?}"),
            }
        };
        let shown: Vec<String> = STOCK[3..10]
            .iter()
            .map(|(_, message, _)| shown(message))
            .collect();
        assert_eq!(
            shown,
            [
                "FillSuperblock: No such file or directory",
                "FillSuperblock: invalid RAFS superblock",
                "FillSuperblock: failed to fill whole buffer",
                "LoadConfig: Invalid argument",
                "CreateDevice: Input/output error",
                "No such file or directory (os error 2)",
                "Mount: Not a directory",
            ]
        );
        assert_eq!(plain("Load(FillSuperblock"), "Load(FillSuperblock");
    }

    #[test]
    fn codes_of_the_embedded_daemon_decide_whatever_the_text() {
        for (code, expected) in [
            ("AlreadyMounted", "AlreadyMounted"),
            ("NotMounted", "NotMounted"),
            ("SlotsExhausted", "SlotsExhausted"),
            ("BadImage", "BadImage"),
            ("BadConfig", "BadConfig"),
            ("BadSource", "BadSource"),
            ("BadRequest", "Refused"),
            ("FromTheFuture", "Refused"),
        ] {
            let body = format!(r#"{{"code":"{code}","message":"already exists"}}"#);
            assert_eq!(kind(&refusal(500, body.as_bytes())), expected, "{code}");
        }
    }

    #[test]
    fn what_is_not_an_api_error_keeps_its_status_and_beginning() {
        let body = [b"{ \"error\": \"raw\nnewline".as_slice(), &[0xff; 5000]].concat();
        match refusal(503, &body) {
            CallError::UnexpectedResponse {
                status: 503,
                body_prefix,
            } => {
                assert_eq!(body_prefix.chars().count(), PREFIX_CHARS);
                assert!(body_prefix.starts_with("{ \"error\""));
            }
            other => panic!("{other:?}"),
        }
    }
}
