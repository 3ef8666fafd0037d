//! The names of places, as skopeo has them.
//!
//! Pure: never looks whether something is there. Read `mod.rs` for how a place is opened.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::registry::RegistryName;

/// Where an image is, or a root file system that isn't one yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageRef {
    /// `docker://[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`: a registry.
    Docker {
        /// The image's name.
        name: RegistryName,
    },
    /// `oci:PATH[:TAG]`: an OCI image layout.
    Oci {
        /// The directory.
        path: PathBuf,
        /// The image's name in it.
        tag: Option<String>,
    },
    /// `oci-archive:PATH[:TAG]`: an OCI image layout in a tar archive.
    OciArchive {
        /// The archive.
        path: PathBuf,
        /// The image's name in it.
        tag: Option<String>,
    },
    /// `docker-archive:PATH[:NAME:TAG]`: what `docker save` writes.
    DockerArchive {
        /// The archive.
        path: PathBuf,
        /// The image's name in it.
        name: Option<String>,
    },
    /// `dir:PATH`: a manifest and its blobs as plain files, as skopeo writes them.
    Dir {
        /// The directory.
        path: PathBuf,
    },
    /// A path: a root file system, as a directory or a tar archive.
    RootDir {
        /// The directory or archive.
        path: PathBuf,
    },
}

/// What names no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageRefError {
    /// Nothing at all.
    #[error("the image reference is empty")]
    Empty,
    /// A transport, but no path.
    #[error("{reference:?} names no path")]
    NoPath {
        /// What was given.
        reference: String,
    },
    /// A transport that isn't known.
    #[error(
        "{reference:?} begins with {transport:?}, which is none of docker://, oci:, oci-archive:, docker-archive:, \
         dir: (a file of that name is ./{reference}); `skopeo copy {reference} oci:DIR:TAG` brings an image from elsewhere"
    )]
    UnknownTransport {
        /// What was given.
        reference: String,
        /// What it begins with.
        transport: String,
    },
    /// What follows `docker://` isn't an image's name.
    #[error("{name:?} is not the name of an image in a registry: {problem}")]
    RegistryName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A password where everybody sees it.
    #[error("credentials do not belong in an image reference, but in docker's config.json")]
    Credentials,
    /// A name within a layout or an archive that can't be one.
    #[error("{name:?} is not the name of an image in a layout or an archive")]
    BadName {
        /// The name.
        name: String,
    },
}

impl ImageRef {
    /// The path, if the place is on this host.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Oci { path, .. }
            | Self::OciArchive { path, .. }
            | Self::DockerArchive { path, .. }
            | Self::Dir { path }
            | Self::RootDir { path } => Some(path),
            Self::Docker { .. } => None,
        }
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, ImageRefError> {
        if s.is_empty() {
            return Err(ImageRefError::Empty);
        }
        // A colon in a path is one of a transport only if it comes before any slash.
        let Some((transport, rest)) = s
            .split_once(':')
            .filter(|(transport, _)| !transport.contains('/'))
        else {
            return Ok(Self::RootDir { path: s.into() });
        };
        match transport {
            "docker" => {
                let name = rest
                    .strip_prefix("//")
                    .ok_or_else(|| ImageRefError::RegistryName {
                        name: rest.to_owned(),
                        problem: "it begins with docker://",
                    })?;
                name.parse().map(|name| Self::Docker { name })
            }
            "oci" => path_and_name(s, rest).map(|(path, tag)| Self::Oci { path, tag }),
            "oci-archive" => path_and_name(s, rest).map(|(path, tag)| Self::OciArchive { path, tag }),
            "docker-archive" => path_and_name(s, rest).map(|(path, name)| Self::DockerArchive { path, name }),
            "dir" if rest.is_empty() => Err(no_path(s)),
            "dir" => Ok(Self::Dir { path: rest.into() }),
            _ => Err(ImageRefError::UnknownTransport {
                reference: s.to_owned(),
                transport: format!("{transport}:"),
            }),
        }
    }
}

fn no_path(reference: &str) -> ImageRefError {
    ImageRefError::NoPath {
        reference: reference.to_owned(),
    }
}

/// As skopeo does, the path ends at the first colon.
fn path_and_name(reference: &str, rest: &str) -> Result<(PathBuf, Option<String>), ImageRefError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(no_path(reference));
    }
    match name {
        None => Ok((path.into(), None)),
        // The characters of `org.opencontainers.image.ref.name`, OCI image specification, annotations.
        Some(name)
            if name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._:@/+".contains(c)) =>
        {
            Ok((path.into(), Some(name.to_owned())))
        }
        Some(name) => Err(ImageRefError::BadName {
            name: name.to_owned(),
        }),
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, name) = match self {
            Self::Docker { name } => return write!(f, "docker://{name}"),
            Self::Oci { path, tag } => ("oci:", path, tag.as_deref()),
            Self::OciArchive { path, tag } => ("oci-archive:", path, tag.as_deref()),
            Self::DockerArchive { path, name } => ("docker-archive:", path, name.as_deref()),
            Self::Dir { path } => ("dir:", path, None),
            Self::RootDir { path } => ("", path, None),
        };
        write!(f, "{transport}{}", path.display())?;
        match name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn places_are_read_as_they_are_shown() {
        let named = |name: &str| Some(name.to_owned());
        for (text, expected) in [
            (
                "oci:/a/b",
                ImageRef::Oci {
                    path: "/a/b".into(),
                    tag: None,
                },
            ),
            (
                "oci:b:12",
                ImageRef::Oci {
                    path: "b".into(),
                    tag: named("12"),
                },
            ),
            (
                "oci-archive:a.tar:v1.0",
                ImageRef::OciArchive {
                    path: "a.tar".into(),
                    tag: named("v1.0"),
                },
            ),
            (
                "docker-archive:a.tar:debian:12",
                ImageRef::DockerArchive {
                    path: "a.tar".into(),
                    name: named("debian:12"),
                },
            ),
            ("dir:/a:b", ImageRef::Dir { path: "/a:b".into() }),
            (
                "rootfs.tar",
                ImageRef::RootDir {
                    path: "rootfs.tar".into(),
                },
            ),
            (
                "docker://h.io/a/b:1",
                ImageRef::Docker {
                    name: "h.io/a/b:1".parse().unwrap(),
                },
            ),
            ("./a:b", ImageRef::RootDir { path: "./a:b".into() }),
            (
                "/a/oci:b",
                ImageRef::RootDir {
                    path: "/a/oci:b".into(),
                },
            ),
        ] {
            let parsed: ImageRef = text.parse().unwrap();
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn what_names_no_place_is_refused_by_name() {
        for (text, message) in [
            ("", "the image reference is empty"),
            ("oci:", "\"oci:\" names no path"),
            ("oci::tag", "\"oci::tag\" names no path"),
            ("dir:", "\"dir:\" names no path"),
            (
                "docker:debian",
                "\"debian\" is not the name of an image in a registry: it begins with docker://",
            ),
            (
                "oci:a:",
                "\"\" is not the name of an image in a layout or an archive",
            ),
            (
                "oci:a:b c",
                "\"b c\" is not the name of an image in a layout or an archive",
            ),
            (
                "containers-storage:x",
                "\"containers-storage:x\" begins with \"containers-storage:\", which is none of docker://, \
                 oci:, oci-archive:, docker-archive:, dir: (a file of that name is ./containers-storage:x); \
                 `skopeo copy containers-storage:x oci:DIR:TAG` brings an image from elsewhere",
            ),
        ] {
            assert_eq!(text.parse::<ImageRef>().unwrap_err().to_string(), message);
        }
    }
}
