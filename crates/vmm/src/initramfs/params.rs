//! What a machine is for, as shell that `init.sh` reads from its control port: a line with the length, and then this.
//!
//! Pure. Every value is single-quoted, so none can be anything but a value; bytes stay as they are.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::qemu::{UpperDir, VmSpec};

/// Where the guest's own memory is the upper directory. `init.sh` mounts a tmpfs there.
pub(crate) const MEMORY_UPPER: (&str, &str) = ("/run/nydusbox/upper/fs", "/run/nydusbox/upper/work");

/// Where a command is looked for whose environment has no `PATH`, as execvp(3) does: directories, separated by colons.
const PATHLESS_PATH: &str = "/bin:/usr/bin";

/// So much may the guest's clock be behind, in microseconds: it takes about as long until the guest has set it.
const CLOCK_LAG_US: u32 = 20_000;

/// Writes the parameters. `marker` is what ends the command's two output streams, `now` the time since 1970.
pub(crate) fn write(spec: &VmSpec, marker: &str, now: Duration) -> Vec<u8> {
    let mut out = Shell::default();
    out.variable("NB_NOW", now.as_secs().to_string());
    let past = now.subsec_micros();
    let next = (past > CLOCK_LAG_US).then(|| (1_000_000 - past).to_string());
    out.variable("NB_NEXT_SECOND_IN_US", next.unwrap_or_default());
    out.variable("NB_TAG", spec.share.tag.as_str());
    out.variable("NB_SHARE", spec.share_mount.as_str());
    out.variable("NB_ROOT", spec.rootfs.mount_point().as_str());
    out.variable("NB_LOWER", spec.rootfs.lower().as_str());
    out.variable("NB_UPPER", spec.rootfs.upper().as_str());
    out.variable("NB_WORK", spec.rootfs.work().as_str());
    out.variable("NB_OVERLAY", spec.rootfs.options().join(","));
    out.variable(
        "NB_UPPER_IN",
        match spec.upper {
            UpperDir::Share => "share",
            UpperDir::GuestMemory => "memory",
        },
    );
    out.variable("NB_HOSTNAME", spec.hostname.as_str());
    out.variable("NB_WORKDIR", spec.workdir.as_str());
    out.variable("NB_USER", spec.user.user());
    out.variable("NB_GROUP", spec.user.group().unwrap_or_default());
    out.variable("NB_MARKER", marker);
    let path = spec.env.iter().rfind(|(name, _)| name == "PATH");
    out.variable(
        "NB_PATH",
        path.map_or(OsStr::new(PATHLESS_PATH), |(_, value)| value),
    );
    let (program, arguments) = spec.command.split_first().unzip();
    out.variable("NB_PROGRAM", program.map_or(OsStr::new(""), OsString::as_os_str));

    out.raw(b"nb_shares() {\n:\n");
    for share in &spec.shares {
        out.raw(b"nb_share");
        out.word(share.source.as_str());
        out.word(share.target.as_str());
        out.word(if share.read_only { "ro" } else { "rw" });
        out.raw(b"\n");
    }
    out.raw(b"}\n");

    // The command is process 1 of a namespace of its own, as in any container: what it signals are its own, not what
    // carries its output, or watches the host. When it ends, the kernel kills the others, and waits for them.
    // So they are its process group, too, which it would otherwise have in common with ours.
    // nsenter, not chroot: it enters the root and the working directory, whatever the image contains, and sets the
    // user. It is named by path because the container's PATH is already in force for it. HOME and HOSTNAME of ours
    // come first: of two the last counts.
    out.raw(b"nb_command() {\nexec /bin/busybox su -m -s /bin/busybox -- nb env -i \"HOME=$home\"");
    out.raw(b" \"HOSTNAME=$NB_HOSTNAME\"");
    for (name, value) in &spec.env {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        out.word(pair);
    }
    out.raw(b" /bin/busybox unshare -p -f \"--mount-proc=$proc\"");
    out.raw(b" /bin/busybox setsid");
    out.raw(b" /bin/busybox nsenter -r\"$NB_ROOT\" -w\"$workdir\" -S \"$uid\" -- \"$program\"");
    for argument in arguments.unwrap_or_default() {
        out.word(argument);
    }
    out.raw(b"\n}\n");
    out.0
}

#[derive(Default)]
struct Shell(Vec<u8>);

impl Shell {
    fn raw(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
    }

    fn quoted(&mut self, value: &OsStr) {
        self.0.push(b'\'');
        for &byte in value.as_bytes() {
            if byte == b'\'' {
                self.raw(br"'\''");
            } else {
                self.0.push(byte);
            }
        }
        self.0.push(b'\'');
    }

    fn word(&mut self, value: impl AsRef<OsStr>) {
        self.0.push(b' ');
        self.quoted(value.as_ref());
    }

    fn variable(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.raw(name.as_bytes());
        self.0.push(b'=');
        self.quoted(value.as_ref());
        self.0.push(b'\n');
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    #[test]
    fn the_time_is_told_to_the_microsecond() {
        let spec = crate::qemu::made_up_spec();
        for (now, expected) in [
            (
                Duration::from_millis(7_250),
                "NB_NOW='7'\nNB_NEXT_SECOND_IN_US='750000'\n",
            ),
            (
                Duration::from_millis(7_999),
                "NB_NOW='7'\nNB_NEXT_SECOND_IN_US='1000'\n",
            ),
            (
                Duration::from_millis(8_001),
                "NB_NOW='8'\nNB_NEXT_SECOND_IN_US=''\n",
            ),
        ] {
            let written = String::from_utf8(write(&spec, "marker", now)).unwrap();
            assert!(written.starts_with(expected), "{written}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// A real shell prints back exactly what was quoted.
        #[test]
        fn a_shell_reads_back_what_was_quoted(bytes in proptest::collection::vec(1u8.., 0..40)) {
            let mut script = Shell(b"printf %s".to_vec());
            script.word(OsString::from_vec(bytes.clone()));
            let output = Command::new("sh").arg("-c").arg(OsString::from_vec(script.0)).output().unwrap();
            prop_assert!(output.status.success());
            prop_assert_eq!(output.stdout, bytes);
        }
    }
}
