//! The kinds of FUSE requests, by opcode (`enum fuse_opcode`). Pure.

/// Kinds that are told apart; 0 is for opcodes without a name.
pub(super) const KINDS: usize = 53;

/// Names by opcode, as FUSE has them, in lower case.
const NAMES: [&str; KINDS] = [
    "unknown",
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "symlink",
    "",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "read",
    "write",
    "statfs",
    "release",
    "",
    "fsync",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "flush",
    "init",
    "opendir",
    "readdir",
    "releasedir",
    "fsyncdir",
    "getlk",
    "setlk",
    "setlkw",
    "access",
    "create",
    "interrupt",
    "bmap",
    "destroy",
    "ioctl",
    "poll",
    "notify_reply",
    "batch_forget",
    "fallocate",
    "readdirplus",
    "rename2",
    "lseek",
    "copy_file_range",
    "setupmapping",
    "removemapping",
    "syncfs",
    "tmpfile",
    "statx",
];

pub(super) const READ: usize = 15;
pub(super) const WRITE: usize = 16;

/// The kind of a request; a guest may send any number.
pub(super) fn kind(opcode: u32) -> usize {
    usize::try_from(opcode)
        .ok()
        .filter(|kind| NAMES.get(*kind).is_some_and(|name| !name.is_empty()))
        .unwrap_or(0)
}

/// Its name.
pub(super) fn name(kind: usize) -> &'static str {
    NAMES.get(kind).copied().unwrap_or(NAMES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_has_a_kind_and_every_kind_a_name_of_its_own() {
        for opcode in (0..100).chain([u32::MAX]) {
            assert!(!name(kind(opcode)).is_empty());
        }
        assert_eq!(
            [1, READ, WRITE, 22].map(name),
            ["lookup", "read", "write", "getxattr"]
        );
        assert_eq!((name(kind(7)), name(kind(4096))), ("unknown", "unknown"));
        let mut named: Vec<&str> = NAMES.into_iter().filter(|n| !n.is_empty()).collect();
        named.sort_unstable();
        named.dedup();
        assert_eq!(named.len(), KINDS - 2);
    }
}
