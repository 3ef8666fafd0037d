//! Paths of an image in JSON, which has text only: as they are displayed, a byte that is no UTF-8 as U+FFFD. serde refuses
//! such a path, and all of a report with it.

use std::path::{Path, PathBuf};

use serde::{Serialize as _, Serializer};

pub(crate) fn one<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

pub(crate) fn all<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Report {
        #[serde(serialize_with = "one")]
        file: PathBuf,
        #[serde(serialize_with = "all")]
        missing: Vec<PathBuf>,
    }

    #[test]
    fn a_name_that_is_no_text_costs_no_report() {
        let file = PathBuf::from(OsStr::from_bytes(b"na\xffme"));
        let missing = vec![PathBuf::from("/\u{e4}"), file.clone()];
        let json = serde_json::to_value(Report { file, missing }).ok();
        let expected = serde_json::json!({ "file": "na\u{fffd}me", "missing": ["/\u{e4}", "na\u{fffd}me"] });
        assert_eq!(json, Some(expected));
    }
}
