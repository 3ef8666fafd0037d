//! Finds the registry's part in an error of this crate.
//!
//! Errors pass each other on without a word of their own, which hides them from [`Error::source`]: here is who passes
//! on whom.

use std::error::Error;
use std::io;
use std::iter;

use crate::convert::ConvertError;
use crate::copy::CopyError;
use crate::nydus_image::NydusImageError;
use crate::optimize::OptimizeError;
use crate::source::{RegistryError, SinkError, SourceError};
use crate::store::StoreError;

/// What a registry did, if that is why there is `error`: for a caller who knows what can be done about it.
#[must_use]
pub fn registry_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e RegistryError> {
    iter::successors(Some(error), |&error| error.source()).find_map(passed_on)
}

fn passed_on<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e RegistryError> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let inner: &(dyn Error + 'static) = if let Some(error) = error.downcast_ref::<io::Error>() {
        error.get_ref()?
    } else if let Some(error) = error.downcast_ref::<SourceError>() {
        match error {
            SourceError::Registry(error) => return Some(error),
            _ => return None,
        }
    } else if let Some(error) = error.downcast_ref::<SinkError>() {
        match error {
            SinkError::Registry(error) => return Some(error),
            _ => return None,
        }
    } else if let Some(error) = error.downcast_ref::<ConvertError>() {
        match error {
            ConvertError::Source(error) => error,
            ConvertError::Sink(error) => error,
            _ => return None,
        }
    } else if let Some(error) = error.downcast_ref::<CopyError>() {
        match error {
            CopyError::Source(error) => error,
            CopyError::Nydus(error) => error,
            CopyError::Sink(error) => error,
            _ => return None,
        }
    } else if let Some(error) = error.downcast_ref::<OptimizeError>() {
        match error {
            OptimizeError::Image(error) => error,
            OptimizeError::Source(error) => error,
            OptimizeError::Sink(error) => error,
            _ => return None,
        }
    } else if let Some(error) = error.downcast_ref::<StoreError>() {
        match error {
            StoreError::Source(error) => error,
            StoreError::Convert(error) => error,
            _ => return None,
        }
    } else if let Some(NydusImageError::Source(error)) = error.downcast_ref() {
        error
    } else {
        return None;
    };
    registry_error(inner)
}
