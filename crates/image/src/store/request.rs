//! What can be asked of the store. Every value here is valid once it exists.

use crate::convert::{ConvertConfig, Mode};
use crate::source::{AccessOptions, Platform};

/// When the place that a reference names is asked. One on this host's disk is, unless it may not be: it costs
/// nothing, and its images change under their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PullPolicy {
    /// If the image is not here.
    #[default]
    Missing,
    /// Each time; what has not changed there is not fetched again.
    Always,
    /// Never: the image has to be here.
    Never,
}

/// How an image is to be had. See [`Store::get`](super::Store::get).
#[derive(Debug, Clone)]
pub struct GetRequest {
    pub(super) convert: ConvertConfig,
    pub(super) access: AccessOptions,
    pub(super) policy: PullPolicy,
}

impl GetRequest {
    /// The image for `platform`; converted, where it has to be, to what is usual, and by reference: all of it is
    /// fetched, and need not be compressed anew.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self::converted_by(ConvertConfig::new(platform).mode(Mode::Reference))
    }

    /// The image for the platform of `convert`, which says how it is converted if it has to be; by reference only to
    /// RAFS v6.
    #[must_use]
    pub fn converted_by(convert: ConvertConfig) -> Self {
        Self {
            convert,
            access: AccessOptions::default(),
            policy: PullPolicy::default(),
        }
    }

    /// Sets how places are reached.
    #[must_use]
    pub fn access(mut self, access: AccessOptions) -> Self {
        self.access = access;
        self
    }

    /// Sets when the image's place is asked.
    #[must_use]
    pub fn policy(mut self, policy: PullPolicy) -> Self {
        self.policy = policy;
        self
    }

    pub(super) fn platform(&self) -> &Platform {
        &self.convert.platform
    }
}
