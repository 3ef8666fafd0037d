//! A platform, and which of several images fits it best.
//!
//! Pure. Who asks is `document.rs`.

use std::env::consts;
use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, Platform as OciPlatform};
use thiserror::Error;

/// What an image is made for, by the names Go has for it: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The processor: `amd64`, `arm64`, `riscv64`.
    pub architecture: String,
    /// Which of its generations, where images tell them apart: `v7` of `arm`.
    pub variant: Option<String>,
}

impl Platform {
    /// A platform; other names for an architecture (`x86_64`, `aarch64`) become Go's.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "i686" | "x86" => ("386", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.or(implied).map(str::to_owned),
        }
    }

    /// How well an image for `offered` does here: the generation it is for, the higher the better, or `None`
    /// if it doesn't run.
    fn fit(&self, offered: &OciPlatform) -> Option<u32> {
        let offered_arch = offered.architecture().to_string();
        let offered = Self::new(
            &offered.os().to_string(),
            &offered_arch,
            offered.variant().as_deref(),
        );
        if (&offered.os, &offered.architecture) != (&self.os, &self.architecture) {
            return None;
        }
        if offered.variant == self.variant {
            return Some(u32::MAX);
        }
        let wanted = self.generation(self.variant.as_deref())?;
        let has = offered.generation(offered.variant.as_deref())?;
        (has <= wanted).then_some(has)
    }

    /// The number of a variant, and what is meant by none; `None` for a variant that isn't a number.
    fn generation(&self, variant: Option<&str>) -> Option<u32> {
        match variant {
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
            None => Some(match &*self.architecture {
                "arm" => 7,
                "arm64" => 8,
                _ => 1,
            }),
        }
    }

    /// The manifest of `manifests` that fits best, the first of several that fit as well.
    pub(super) fn choose<'m>(&self, manifests: &'m [Descriptor]) -> Option<&'m Descriptor> {
        let fitting = |manifest: &'m Descriptor| {
            let fit = self.fit(manifest.platform().as_ref()?)?;
            Some((fit, manifest))
        };
        let better = |best: (u32, &'m Descriptor), next: (u32, &'m Descriptor)| {
            if next.0 > best.0 { next } else { best }
        };
        manifests
            .iter()
            .filter_map(fitting)
            .reduce(better)
            .map(|(_, manifest)| manifest)
    }
}

impl Default for Platform {
    /// Linux on this machine's processor.
    fn default() -> Self {
        Self::new("linux", consts::ARCH, None)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Not a platform.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not a platform: OS/ARCHITECTURE[/VARIANT], as in linux/arm64/v8")]
pub struct PlatformError {
    /// What was given.
    pub found: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(s: &str) -> Result<Self, PlatformError> {
        let refused = || PlatformError { found: s.to_owned() };
        let parts: Vec<_> = s.split('/').collect();
        let named = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !parts.iter().all(named) {
            return Err(refused());
        }
        match *parts {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use oci_spec::image::MediaType;

    use super::*;
    use crate::source::sha256_of;

    fn offered(platforms: &[&str]) -> Vec<Descriptor> {
        let descriptor = |platform: &&str| {
            let mut descriptor = Descriptor::new(MediaType::ImageManifest, 1, sha256_of(platform.as_bytes()));
            if !platform.is_empty() {
                let parsed: Platform = platform.parse().unwrap();
                let mut platform = OciPlatform::default();
                platform.set_os(parsed.os.as_str().into());
                platform.set_architecture(parsed.architecture.as_str().into());
                platform.set_variant(parsed.variant);
                descriptor.set_platform(Some(platform));
            }
            descriptor
        };
        platforms.iter().map(descriptor).collect()
    }

    #[test]
    fn the_highest_generation_that_still_runs_is_chosen() {
        for (wanted, from, chosen) in [
            (
                "linux/amd64",
                vec!["linux/arm64", "linux/amd64"],
                Some("linux/amd64"),
            ),
            ("linux/amd64", vec!["linux/arm64", "windows/amd64"], None),
            (
                "linux/amd64",
                vec!["linux/amd64/v3", "linux/amd64/v1"],
                Some("linux/amd64/v1"),
            ),
            (
                "linux/amd64/v3",
                vec!["linux/amd64", "linux/amd64/v2"],
                Some("linux/amd64/v2"),
            ),
            (
                "linux/arm64",
                vec!["linux/arm/v7", "linux/arm64/v8"],
                Some("linux/arm64/v8"),
            ),
            (
                "linux/arm64/v8",
                vec!["unknown/unknown", "", "linux/arm64"],
                Some("linux/arm64"),
            ),
            (
                "linux/arm/v7",
                vec!["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
                Some("linux/arm/v6"),
            ),
            ("linux/x86_64", vec!["linux/amd64"], Some("linux/amd64")),
        ] {
            let manifests = offered(&from);
            let found = wanted.parse::<Platform>().unwrap().choose(&manifests);
            let expected = chosen.map(|chosen| sha256_of(chosen.as_bytes()));
            assert_eq!(
                found.map(|m| m.digest().clone()),
                expected,
                "{wanted} of {from:?}"
            );
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux /amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!(
            "linux/arm/v7".parse::<Platform>().unwrap().to_string(),
            "linux/arm/v7"
        );
    }
}
