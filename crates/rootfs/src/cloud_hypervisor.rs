//! Cloud Hypervisor's arguments for the share.
//!
//! Its option parser splits at commas and has no escape for them (a value may only be quoted as a whole), so a path
//! with a comma or a quote is refused rather than misread.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::ShareDevice;

/// A value Cloud Hypervisor's option syntax cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cloud-hypervisor's options cannot carry the {what} {value:?}: it has a comma or a quote")]
pub struct CloudHypervisorError {
    /// `socket path` or `tag`.
    pub what: &'static str,
    /// The value.
    pub value: OsString,
}

impl ShareDevice {
    /// `--memory` and `--fs` for Cloud Hypervisor: shared memory of `memory_bytes`, and this share on one request
    /// queue (nydusd serves exactly one).
    ///
    /// # Errors
    /// [`CloudHypervisorError`] when the socket's path or the tag has a comma or a quote.
    pub fn cloud_hypervisor_arguments(
        &self,
        memory_bytes: u64,
    ) -> Result<Vec<OsString>, CloudHypervisorError> {
        let plain = |what, value: OsString| {
            if value.as_bytes().iter().any(|b| b",\"[]".contains(b)) {
                Err(CloudHypervisorError { what, value })
            } else {
                Ok(value)
            }
        };
        let mut fs = OsString::from("tag=");
        fs.push(plain("tag", self.tag.as_str().into())?);
        fs.push(",socket=");
        fs.push(plain("socket path", self.socket.as_os_str().to_owned())?);
        fs.push(format!(",num_queues=1,queue_size={}", self.queue_size.entries()));
        Ok(vec![
            "--memory".into(),
            format!("size={memory_bytes},shared=on").into(),
            "--fs".into(),
            fs,
        ])
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ShareSocket;

    #[test]
    fn memory_is_shared_and_the_share_has_one_request_queue() {
        let share = ShareDevice::on(ShareSocket::new("/run/fs.sock").unwrap());
        assert_eq!(
            share.cloud_hypervisor_arguments(1 << 30).unwrap(),
            [
                "--memory",
                "size=1073741824,shared=on",
                "--fs",
                "tag=kataShared,socket=/run/fs.sock,num_queues=1,queue_size=1024",
            ]
        );
    }

    #[test]
    fn a_comma_in_the_path_is_refused() {
        let share = ShareDevice::on(ShareSocket::new("/run/a,b").unwrap());
        let error = share.cloud_hypervisor_arguments(1).unwrap_err();
        assert_eq!(
            (error.what, error.value.as_os_str()),
            ("socket path", "/run/a,b".as_ref())
        );
    }
}
