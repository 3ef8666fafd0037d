//! What the start-up of an image read, in order: the file that `run --record-trace` writes and `optimize` reads.
//!
//! JSON, one value a line, so that it can be read, cut and written by hand:
//! ```text
//! {"nydusbox_trace":1,"image":"sha256:…","complete":true}
//! {"path":"/usr/bin/cat","offset":0,"length":35280,"ms":12}
//! {"path":"/etc/os-release"}
//! ```
//! The first line has the version of the format, the SHA-256 of the image's bootstrap, and whether everything is here.
//! Each further one is a part of a file; without `offset` it begins with the file, without `length` it goes to its end
//! (both in bytes), and `ms` is how long after recording began it was read. In paths `%XX` is a byte. Lines that are empty or
//! begin with `#` count for nothing, and so do fields that are not known here.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The version that is written, and the only one there has been.
const VERSION: u32 = 1;
/// What of a path is written as `%XX`, besides what is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
/// No line is longer: no path is, however it is written.
const LINE_BYTES: u64 = 64 << 10;
/// A trace has no more reads.
const MOST_READS: usize = 1 << 20;

/// What a start-up read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartupTrace {
    /// Digest of the bootstrap of the image that was read, `sha256:` and hexadecimal digits.
    pub image: Option<String>,
    /// Whether everything is here: of a long start-up only the beginning may be.
    pub complete: bool,
    /// In order.
    pub reads: Vec<TraceRead>,
}

/// A part of a file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRead {
    /// From the image's root on.
    pub path: PathBuf,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// In bytes; to the end of the file if none.
    pub length: Option<u64>,
    /// How long after recording began, in milliseconds.
    pub ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    nydusbox_trace: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default = "yes")]
    complete: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    #[serde(default)]
    offset: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
}

/// Why a trace can't be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file can't be read.
    #[error("read the trace {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file can't be written.
    #[error("write the trace {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It doesn't begin as a trace does.
    #[error("{} is not a trace of a start-up", path.display())]
    NotATrace {
        /// The file.
        path: PathBuf,
    },
    /// Written by a version of this program that doesn't exist yet.
    #[error("trace {} is of version {version}, which is not known here", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version it says it is of.
        version: u32,
    },
    /// A line that is none of a trace.
    #[error("trace {} makes no sense in line {line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A path that doesn't begin at the root.
    #[error("trace {} has a path in line {line} that does not begin with /", path.display())]
    Relative {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A line without end, or lines without end.
    #[error("trace {} is longer than any", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

impl TraceRead {
    /// A part of the file at `path`, in which `%XX` is a byte.
    #[must_use]
    pub fn of_encoded(path: &str, offset: u64, length: u64, ms: u64) -> Self {
        Self {
            path: decoded(path),
            offset,
            length: Some(length),
            ms: Some(ms),
        }
    }

    /// The path as [`TraceRead::of_encoded`] takes it.
    #[must_use]
    pub fn encoded_path(&self) -> String {
        percent_encode(self.path.as_os_str().as_bytes(), ESCAPED).to_string()
    }
}

impl StartupTrace {
    /// What was read of the image with this bootstrap.
    ///
    /// # Errors
    /// If the bootstrap can't be read.
    pub fn of_image(bootstrap: &Path, complete: bool, reads: Vec<TraceRead>) -> Result<Self, TraceError> {
        Ok(Self {
            image: Some(digest_of(bootstrap)?),
            complete,
            reads,
        })
    }

    /// Whether it was recorded of the image with this bootstrap, as far as it says of which.
    ///
    /// # Errors
    /// If the bootstrap can't be read.
    pub fn is_of_image(&self, bootstrap: &Path) -> Result<bool, TraceError> {
        match &self.image {
            Some(image) => Ok(*image == digest_of(bootstrap)?),
            None => Ok(true),
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`TraceError`], with the line where there is one.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let file = File::open(path).map_err(|source| TraceError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&mut BufReader::new(file), path)
    }

    pub(crate) fn parse(input: &mut dyn BufRead, path: &Path) -> Result<Self, TraceError> {
        let path = || path.to_owned();
        let mut trace: Option<Self> = None;
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            let got = Read::take(&mut *input, LINE_BYTES)
                .read_until(b'\n', &mut text)
                .map_err(|source| TraceError::Unreadable { path: path(), source })?;
            if got as u64 == LINE_BYTES {
                return Err(TraceError::TooLong { path: path() });
            }
            let content = text.trim_ascii();
            if content.is_empty() && got > 0 || content.starts_with(b"#") {
                continue;
            }
            let Some(trace) = &mut trace else {
                trace = Some(Self::begin(content, path())?);
                continue;
            };
            if got == 0 {
                break;
            }
            let parsed: Line = serde_json::from_slice(content).map_err(|source| TraceError::Line {
                path: path(),
                line,
                source,
            })?;
            let file = decoded(&parsed.path);
            if !file.is_absolute() {
                return Err(TraceError::Relative { path: path(), line });
            }
            if trace.reads.len() == MOST_READS {
                return Err(TraceError::TooLong { path: path() });
            }
            trace.reads.push(TraceRead {
                path: file,
                offset: parsed.offset,
                length: parsed.length,
                ms: parsed.ms,
            });
        }
        trace.ok_or_else(|| TraceError::NotATrace { path: path() })
    }

    fn begin(line: &[u8], path: PathBuf) -> Result<Self, TraceError> {
        let Ok(header) = serde_json::from_slice::<Header>(line) else {
            return Err(TraceError::NotATrace { path });
        };
        if header.nydusbox_trace != VERSION {
            return Err(TraceError::UnknownVersion {
                path,
                version: header.nydusbox_trace,
            });
        }
        Ok(Self {
            image: header.image,
            complete: header.complete,
            reads: Vec::new(),
        })
    }

    /// Writes it to `path`, in one step.
    ///
    /// # Errors
    /// [`TraceError::Unwritable`]; what was there before is there still.
    pub fn write(&self, path: &Path) -> Result<(), TraceError> {
        let write = || {
            let dir = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(self.to_text()?.as_bytes())?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| TraceError::Unwritable {
            path: path.to_owned(),
            source,
        })
    }

    fn to_text(&self) -> io::Result<String> {
        let mut text = serde_json::to_string(&Header {
            nydusbox_trace: VERSION,
            image: self.image.clone(),
            complete: self.complete,
        })?;
        text.push('\n');
        for read in &self.reads {
            text += &serde_json::to_string(&Line {
                path: read.encoded_path(),
                offset: read.offset,
                length: read.length,
                ms: read.ms,
            })?;
            text.push('\n');
        }
        Ok(text)
    }
}

/// How a trace names the image of a bootstrap.
pub(crate) fn digest_of(bootstrap: &Path) -> Result<String, TraceError> {
    let mut hash = Sha256::new();
    let hashed = File::open(bootstrap).and_then(|mut file| io::copy(&mut file, &mut hash));
    hashed.map_err(|source| TraceError::Unreadable {
        path: bootstrap.to_owned(),
        source,
    })?;
    Ok(format!("sha256:{:x}", hash.finalize()))
}

fn decoded(path: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(percent_decode_str(path).collect()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<StartupTrace, TraceError> {
        StartupTrace::parse(&mut text.as_bytes(), Path::new("t"))
    }

    #[test]
    fn written_by_hand_it_needs_no_more_than_paths() {
        let trace = parse("\n# mine\n{\"nydusbox_trace\":1}\n\n{\"path\":\"/a%20b%ff\"}\n# end\n{\"path\":\"/c\",\"offset\":3,\"future\":1}").unwrap();
        assert!(trace.complete && trace.image.is_none());
        let names: Vec<&[u8]> = trace
            .reads
            .iter()
            .map(|r| r.path.as_os_str().as_bytes())
            .collect();
        assert_eq!(names, [b"/a b\xff".as_slice(), b"/c"]);
        assert_eq!((trace.reads[1].offset, trace.reads[1].length), (3, None));
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        assert!(matches!(parse(""), Err(TraceError::NotATrace { .. })));
        assert!(matches!(
            parse("/usr/bin/cat\n"),
            Err(TraceError::NotATrace { .. })
        ));
        assert!(matches!(
            parse("{\"nydusbox_trace\":2}"),
            Err(TraceError::UnknownVersion { version: 2, .. })
        ));
        let head = "{\"nydusbox_trace\":1}\n";
        assert!(matches!(
            parse(&format!("{head}{{}}")),
            Err(TraceError::Line { line: 2, .. })
        ));
        assert!(matches!(
            parse(&format!("{head}\n{{\"path\":\"a\"}}")),
            Err(TraceError::Relative { line: 3, .. })
        ));
        let long = format!("{head}{{\"path\":\"/{}\"}}", "a".repeat(1 << 17));
        assert!(matches!(parse(&long), Err(TraceError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            names in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..12), 0..8),
            length in proptest::option::of(0_u64..),
            complete: bool,
        ) {
            let reads = names.into_iter().map(|name| TraceRead {
                path: PathBuf::from(OsString::from_vec([b"/".as_slice(), &name].concat())),
                offset: 7,
                length,
                ms: Some(1),
            });
            let trace = StartupTrace { image: Some("sha256:0".into()), complete, reads: reads.collect() };
            prop_assert_eq!(parse(&trace.to_text().unwrap()).unwrap(), trace);
        }
    }
}
