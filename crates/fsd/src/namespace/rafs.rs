//! Makes the file system of a RAFS image.
//!
//! What nydus reports as one opaque error is told apart here first: a configuration that is no JSON, one that
//! names no backend or a directory that is not there, a file that is no bootstrap. What is left is passed on.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_rafs::RafsError;
use nydus_rafs::metadata::RafsSuper;
use nydusbox_protocol::{MountCommand, MountPoint};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use super::error::MountError;
use super::redact::redact;
use super::table::ImageOrigin;
use crate::image_fs::{ImageFs, Named, Workers};

/// `"RAFS"`, first word of a v5 superblock.
const V5_MAGIC: u32 = 0x5241_4653;
const V5_VERSION: u32 = 0x500;
/// EROFS' magic, at [`V6_MAGIC_AT`]; a v6 bootstrap is an EROFS image.
const V6_MAGIC: u32 = 0xE0F5_E1E2;
const V6_MAGIC_AT: usize = 1024;
/// Merge window for prefetching when the configuration says 0, with which nydus-storage would divide, in bytes.
const DEFAULT_PREFETCH_BATCH: usize = 1 << 20;

/// A configuration that can be used, and what of it may be shown.
pub(super) struct RafsConfig {
    pub(super) config: Arc<ConfigV2>,
    pub(super) shown: Value,
}

/// Reads a mount's configuration, JSON (version 2 or 1) or TOML.
pub(super) fn parse_config(at: &MountPoint, text: &str) -> Result<RafsConfig, MountError> {
    let bad = |why: String| MountError::BadConfig {
        mount_point: at.clone(),
        why,
    };
    let mut config = ConfigV2::from_str(text).map_err(|_| bad(explain(text)))?;
    let Some(backend) = &config.backend else {
        return Err(bad("lacks the section `backend`".into()));
    };
    if let Some(localfs) = &backend.localfs {
        for dir in std::iter::once(&localfs.dir)
            .chain(&localfs.alt_dirs)
            .filter(|d| !d.is_empty())
        {
            if !Path::new(dir).is_dir() {
                return Err(bad(format!(
                    "names the blob directory {dir:?}, which is not there"
                )));
            }
        }
        if !localfs.blob_file.is_empty() && !Path::new(&localfs.blob_file).exists() {
            return Err(bad(format!(
                "names the blob file {:?}, which is not there",
                localfs.blob_file
            )));
        }
    }
    for prefetch in [
        config.cache.as_mut().map(|c| &mut c.prefetch),
        config.rafs.as_mut().map(|r| &mut r.prefetch),
    ]
    .into_iter()
    .flatten()
    {
        if prefetch.enable && prefetch.batch_size == 0 {
            prefetch.batch_size = DEFAULT_PREFETCH_BATCH;
        }
    }
    let mut shown = serde_json::to_value(config.clone_without_secrets())
        .map_err(|e| bad(format!("cannot be shown: {e}")))?;
    redact(&mut shown);
    Ok(RafsConfig {
        config: Arc::new(config),
        shown,
    })
}

/// Why nydus did not understand a configuration.
fn explain(text: &str) -> String {
    if text.trim().is_empty() {
        return "is empty".into();
    }
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        // The position is told, the text is not: it may hold credentials.
        Err(e) => {
            return format!(
                "is neither JSON ({:?} error at line {}, column {}) nor TOML",
                e.classify(),
                e.line(),
                e.column()
            );
        }
    };
    let Value::Object(map) = &value else {
        return "is JSON, but not an object".into();
    };
    if map.get("version").is_some_and(|v| v == 2) {
        match map.get("backend") {
            None | Some(Value::Null) => "lacks the section `backend`".into(),
            Some(backend) => match backend.get("type").and_then(Value::as_str) {
                None => "has a section `backend` without `type`".into(),
                Some(kind) => {
                    let detail = missing_field(&value)
                        .unwrap_or_else(|| "look at `backend`, `cache` and `rafs`".into());
                    format!("is not valid (backend type {kind:?}): {detail}")
                }
            },
        }
    } else if map.contains_key("device") {
        match map["device"].get("backend") {
            None | Some(Value::Null) => "lacks the section `device.backend`".into(),
            Some(_) if !map.contains_key("mode") => "lacks `mode`, which version 1 requires".into(),
            Some(_) => "is not a valid version 1 configuration".into(),
        }
    } else {
        "has neither `\"version\": 2` nor the section `device` of version 1, so it names no backend".into()
    }
}

/// Which field a version 2 configuration lacks. Other complaints of the parser quote values, which may be secret.
fn missing_field(value: &Value) -> Option<String> {
    let error = ConfigV2::deserialize(value).err()?.to_string();
    error.starts_with("missing field").then_some(error)
}

/// Opens the image.
pub(super) fn build(
    at: &MountPoint,
    command: &MountCommand,
    config: &RafsConfig,
    workers: Arc<Workers>,
) -> Result<ImageFs, MountError> {
    let prefetch = prefetch_list(command)?;
    let path = Path::new(&command.source);
    check_bootstrap(path)?;
    let describe = |e| from_rafs(at, path, &e);
    reading(path, || {
        let (image, reader) = ImageFs::open(&config.config, at.as_str(), path, workers).map_err(describe)?;
        // The VFS asks for it next, and says less if there is none.
        image.root().map_err(|e| describe(RafsError::FillSuperBlock(e)))?;
        image.start_prefetch(&config.config, reader, prefetch);
        Ok(image)
    })
}

/// Gives a mounted image a new bootstrap or configuration.
pub(super) fn update(
    at: &MountPoint,
    image: &ImageFs,
    command: &MountCommand,
    config: &RafsConfig,
) -> Result<(), MountError> {
    let path = Path::new(&command.source);
    check_bootstrap(path)?;
    reading(path, || {
        image
            .update(path, &config.config)
            .map_err(|e| from_rafs(at, path, &e))
    })
}

/// Has nydus read a bootstrap; where it trusts one that it should not, it panics.
fn reading<T>(path: &Path, read: impl FnOnce() -> Result<T, MountError>) -> Result<T, MountError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(MountError::BadBootstrap {
            path: path.to_owned(),
            why: "what it says cannot be".into(),
        })
    })
}

/// The id of the first blob an image refers to.
pub(super) fn first_blob(image: &ImageOrigin) -> Option<String> {
    // The file may be another one by now.
    reading(&image.bootstrap, || {
        let loaded = RafsSuper::load_from_file(&image.bootstrap, Arc::clone(&image.config), false);
        let infos = loaded.ok().map(|(sb, _)| sb.superblock.get_blob_infos());
        Ok(infos.and_then(|infos| infos.first().map(|blob| blob.blob_id())))
    })
    .ok()
    .flatten()
}

fn prefetch_list(command: &MountCommand) -> Result<Named, MountError> {
    let absolute = |path: PathBuf, name: &str| match path.is_absolute() {
        true => Ok(path),
        false => Err(MountError::BadPrefetch {
            path: name.to_owned(),
        }),
    };
    let files = command.prefetch_files.as_ref().map(|files| {
        let files = files.iter().map(|file| absolute(file.into(), file));
        files.collect::<Result<_, _>>()
    });
    let parts = command.prefetch_parts.iter().flatten().map(|part| {
        let path = OsString::from_vec(percent_decode_str(&part.path).collect());
        let end = part
            .length
            .map_or(u64::MAX, |length| part.offset.saturating_add(length));
        absolute(path.into(), &part.path).map(|path| (path, part.offset, end))
    });
    let program = command.prefetch_program.iter().flatten();
    let program = program.map(|file| absolute(file.into(), file));
    Ok(Named {
        program: program.collect::<Result<_, _>>()?,
        files: files.transpose()?,
        parts: parts.collect::<Result<_, _>>()?,
    })
}

/// Looks at the magic numbers, so that a wrong file is told from a damaged one.
fn check_bootstrap(path: &Path) -> Result<(), MountError> {
    let unreadable = |source| MountError::BootstrapUnreadable {
        path: path.to_owned(),
        source,
    };
    let not = |why: String| MountError::NotABootstrap {
        path: path.to_owned(),
        why,
    };
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(not("it is not a regular file".into()));
    }
    let mut head = [0; V6_MAGIC_AT + 4];
    let mut got = 0;
    while got < head.len() {
        match file.read_at(&mut head[got..], got as u64).map_err(unreadable)? {
            0 => break,
            n => got += n,
        }
    }
    let word = |at: usize| {
        (at + 4 <= got).then(|| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))
    };
    match (word(0), word(4), word(V6_MAGIC_AT)) {
        (Some(V5_MAGIC), Some(V5_VERSION), _) | (_, _, Some(V6_MAGIC)) => Ok(()),
        (Some(V5_MAGIC), Some(version), _) => Err(not(format!(
            "its format version is {version:#x}; versions 5 (0x500) and 6 are supported"
        ))),
        _ => Err(not(format!(
            "it is {} bytes long and has neither the magic number of version 5 nor of version 6",
            meta.len()
        ))),
    }
}

fn from_rafs(at: &MountPoint, path: &Path, error: &RafsError) -> MountError {
    // The texts of nydus end in a stray back-tick.
    let why = error.to_string().trim_end_matches('`').to_owned();
    match error {
        RafsError::LoadConfig(_) | RafsError::ParseConfig(_) | RafsError::Configure(_) => {
            MountError::BadConfig {
                mount_point: at.clone(),
                why: format!("is refused: {why}"),
            }
        }
        RafsError::CreateDevice(_) | RafsError::SwapBackend(_) => MountError::BadBackend {
            mount_point: at.clone(),
            why,
        },
        RafsError::Unsupported
        | RafsError::Uninitialized
        | RafsError::AlreadyMounted
        | RafsError::ReadMetadata(..)
        | RafsError::FillSuperBlock(_)
        | RafsError::Prefetch(_)
        | RafsError::Incompatible(_)
        | RafsError::IllegalMetaStruct(..)
        | RafsError::InvalidImageData => MountError::BadBootstrap {
            path: path.to_owned(),
            why,
        },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        let at = MountPoint::new("/m").unwrap();
        parse_config(&at, text).err().unwrap().to_string()
    }

    #[test]
    fn a_bad_configuration_is_told_apart() {
        assert!(why("").contains("is empty"));
        assert!(why("{\"version\":2,").contains("neither JSON"));
        assert!(why("[]").contains("not an object"));
        assert!(why("{}").contains("names no backend"));
        assert!(why("{\"version\":2}").contains("lacks the section `backend`"));
        assert!(why("{\"device\":{}}").contains("device.backend"));
        let missing = r#"{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/no/such/blobs"}},
            "cache":{"type":"blobcache","filecache":{"work_dir":"/tmp"}},"rafs":{"mode":"direct"}}"#;
        assert!(why(missing).contains("/no/such/blobs"), "{}", why(missing));
    }

    #[test]
    fn the_text_of_a_broken_configuration_is_not_quoted() {
        assert!(!why(r#"{"auth":"SECRET""#).contains("SECRET"));
    }

    #[test]
    fn random_bytes_and_a_wrong_version_are_no_bootstrap() {
        let dir = std::env::temp_dir().join(format!("nydusbox-rafs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("boot");
        std::fs::write(&file, [7; 4096]).unwrap();
        assert!(matches!(
            check_bootstrap(&file),
            Err(MountError::NotABootstrap { .. })
        ));
        let mut old = [0; 4096];
        old[..4].copy_from_slice(&V5_MAGIC.to_le_bytes());
        old[4..8].copy_from_slice(&0x400u32.to_le_bytes());
        std::fs::write(&file, old).unwrap();
        assert!(check_bootstrap(&file).unwrap_err().to_string().contains("0x400"));
        assert!(matches!(
            check_bootstrap(&dir.join("none")),
            Err(MountError::BootstrapUnreadable { .. })
        ));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
