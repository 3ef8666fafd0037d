//! What a supervisor finds of its predecessor.

use nydusbox::StateDocument;

/// The bytes of a `state.json`.
pub fn state_document(data: &[u8]) {
    let Ok(document) = StateDocument::parse(data) else {
        return;
    };
    let bytes = document.encode().unwrap_or_default();
    let again = StateDocument::parse(&bytes).ok();
    assert_eq!(again, Some(document), "what was read is read again");
}
