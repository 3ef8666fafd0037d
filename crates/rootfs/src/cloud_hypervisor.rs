//! Cloud Hypervisor's arguments for the share, and the same as its API takes it.
//!
//! Its option parser splits at commas and has no escape for them (a value may only be quoted as a whole), so a path
//! with a comma or a quote is refused rather than misread. Its API takes JSON and so any path that is text.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use crate::ShareDevice;

/// nydusd serves exactly one request queue.
const REQUEST_QUEUES: u32 = 1;

/// A socket's path that JSON cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("socket path {path:?} is not UTF-8, which cloud-hypervisor's API needs")]
pub struct CloudHypervisorPathError {
    /// The path.
    pub path: PathBuf,
}

/// `FsConfig`, the body of `vm.add-fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloudHypervisorFs {
    /// The tag.
    pub tag: String,
    /// The daemon's socket.
    pub socket: String,
    /// Request queues.
    pub num_queues: u32,
    /// Entries in each.
    pub queue_size: u16,
}

/// The part of `MemoryConfig` the share depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloudHypervisorMemory {
    /// In bytes.
    pub size: u64,
    /// Always: the daemon maps the guest's memory.
    pub shared: bool,
}

/// The part of `VmConfig` (`vm.create`) that gives a VM the share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloudHypervisorConfig {
    /// The guest's memory.
    pub memory: CloudHypervisorMemory,
    /// The share, alone.
    pub fs: [CloudHypervisorFs; 1],
}

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
    /// This share as `vm.add-fs` takes it.
    ///
    /// # Errors
    /// [`CloudHypervisorPathError`] when the socket's path is not UTF-8.
    pub fn cloud_hypervisor_fs(&self) -> Result<CloudHypervisorFs, CloudHypervisorPathError> {
        let path = self.socket.as_path();
        let socket = path.to_str().ok_or_else(|| CloudHypervisorPathError {
            path: path.to_owned(),
        })?;
        Ok(CloudHypervisorFs {
            tag: self.tag.as_str().to_owned(),
            socket: socket.to_owned(),
            num_queues: REQUEST_QUEUES,
            queue_size: self.queue_size.entries(),
        })
    }

    /// This share with shared memory of `memory_bytes`, as `vm.create` takes them among the rest.
    ///
    /// # Errors
    /// As [`Self::cloud_hypervisor_fs`].
    pub fn cloud_hypervisor_config(
        &self,
        memory_bytes: u64,
    ) -> Result<CloudHypervisorConfig, CloudHypervisorPathError> {
        Ok(CloudHypervisorConfig {
            memory: CloudHypervisorMemory {
                size: memory_bytes,
                shared: true,
            },
            fs: [self.cloud_hypervisor_fs()?],
        })
    }

    /// `--memory` and `--fs` for Cloud Hypervisor: shared memory of `memory_bytes`, and this share on one request
    /// queue.
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
        fs.push(format!(
            ",num_queues={REQUEST_QUEUES},queue_size={}",
            self.queue_size.entries()
        ));
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
    fn the_api_takes_the_same_as_json_and_any_text_as_path() {
        let share = ShareDevice::on(ShareSocket::new("/run/a,\"b.sock").unwrap());
        assert_eq!(
            serde_json::to_value(share.cloud_hypervisor_config(1 << 30).unwrap()).unwrap(),
            serde_json::json!({
                "memory": {"size": 1_073_741_824, "shared": true},
                "fs": [{"tag": "kataShared", "socket": "/run/a,\"b.sock", "num_queues": 1, "queue_size": 1024}],
            })
        );
        let bytes = OsString::from(std::ffi::OsStr::from_bytes(b"/run/\xff"));
        assert!(
            ShareDevice::on(ShareSocket::new(bytes).unwrap())
                .cloud_hypervisor_fs()
                .is_err()
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
