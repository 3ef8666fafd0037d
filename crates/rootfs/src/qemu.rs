//! QEMU's arguments for the share, and the quoting QEMU's option values need.
//!
//! vhost-user hands the guest's memory to the daemon as file descriptors, so the memory has to be a shared memfd.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::ShareDevice;

/// The id of the memory backend [`memory_arguments`] defines.
pub const MEMORY_ID: &str = "mem";

/// `value` as it must stand inside a comma-separated QEMU option: a comma is written twice.
#[must_use]
pub fn option_value(value: &OsStr) -> OsString {
    let mut quoted = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        quoted.push(byte);
        if byte == b',' {
            quoted.push(b',');
        }
    }
    OsString::from_vec(quoted)
}

/// Guest memory of `bytes` bytes that a vhost-user daemon can map: `-m`, and a shared memfd as the machine's only
/// memory. The machine option has to name it: `-machine …,memory-backend=mem`.
#[must_use]
pub fn memory_arguments(bytes: u64) -> Vec<OsString> {
    [
        "-m".to_owned(),
        format!("{bytes}B"),
        "-object".to_owned(),
        format!("memory-backend-memfd,id={MEMORY_ID},size={bytes}B,share=on"),
    ]
    .map(OsString::from)
    .to_vec()
}

/// The share's chardev and device. QEMU connects to the daemon while it starts.
#[must_use]
pub fn share_arguments(share: &ShareDevice) -> Vec<OsString> {
    let mut chardev = OsString::from("socket,id=fs,path=");
    chardev.push(option_value(share.socket.as_os_str()));
    let mut device = OsString::from(format!(
        "vhost-user-fs-pci,chardev=fs,queue-size={},tag=",
        share.queue_size.entries()
    ));
    device.push(option_value(OsStr::new(share.tag.as_str())));
    vec!["-chardev".into(), chardev, "-device".into(), device]
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{ShareSocket, ShareTag};
    use proptest::prelude::*;

    #[test]
    fn the_share_is_one_chardev_and_one_device() {
        let share = ShareDevice::on(ShareSocket::new("/run/nydusbox/s1/fs.sock").unwrap());
        assert_eq!(
            share_arguments(&share),
            [
                "-chardev",
                "socket,id=fs,path=/run/nydusbox/s1/fs.sock",
                "-device",
                "vhost-user-fs-pci,chardev=fs,queue-size=1024,tag=kataShared",
            ]
        );
        assert_eq!(
            memory_arguments(512 << 20),
            [
                "-m",
                "536870912B",
                "-object",
                "memory-backend-memfd,id=mem,size=536870912B,share=on",
            ]
        );
    }

    #[test]
    fn commas_in_values_stay_in_the_value() {
        let share = ShareDevice {
            tag: ShareTag::new("a,b").unwrap(),
            ..ShareDevice::on(ShareSocket::new("/run/x,server=on").unwrap())
        };
        let arguments = share_arguments(&share);
        assert_eq!(arguments[1], "socket,id=fs,path=/run/x,,server=on");
        assert_eq!(
            arguments[3],
            "vhost-user-fs-pci,chardev=fs,queue-size=1024,tag=a,,b"
        );
    }

    /// QEMU's `get_opt_value`: `,,` is a comma, a lone `,` ends the value.
    fn qemu_reads(option: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        let mut bytes = option.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte == b',' && bytes.next_if_eq(&b',').is_none() {
                break;
            }
            value.push(byte);
        }
        value
    }

    proptest! {
        #[test]
        fn qemu_reads_back_what_was_quoted(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let quoted = option_value(OsStr::from_bytes(&value));
            let mut option = quoted.as_bytes().to_vec();
            option.extend_from_slice(b",next=1");
            prop_assert_eq!(qemu_reads(&option), value);
        }
    }
}
