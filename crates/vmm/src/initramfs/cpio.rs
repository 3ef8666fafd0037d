//! A writer of `newc` cpio archives, the kernel's initramfs format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owner, group and times are zero and inode numbers count up, so that equal contents are equal archives.

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive being written. Parents must be added before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. `name` is relative to the root, as in all entries.
    pub(crate) fn directory(&mut self, name: &str, permissions: u32) {
        self.entry(name, S_IFDIR | permissions, (0, 0), &[]);
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) {
        self.entry(name, S_IFREG | permissions, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.entry(name, S_IFCHR | permissions, (major, minor), &[]);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = u32::MAX; // The trailer's inode number becomes 0, as `cpio` writes it.
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let inode = self.entries.wrapping_add(1);
        self.entries = inode;
        let size = u32::try_from(contents.len()).expect("a module or busybox is far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names in the initramfs are short");
        self.bytes.extend_from_slice(b"070701");
        let (links, owner, group, time, check) = (1, 0, 0, 0, 0);
        for field in [
            inode, mode, owner, group, links, time, size, 0, 0, device.0, device.1, name_size, check,
        ] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Name, mode, rdev, contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive by the format's document.
    fn read(mut archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&archive[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, device, size, name_size) = (field(1), (field(9), field(10)), field(6), field(11));
            let name_end = 110 + usize::try_from(name_size).unwrap();
            let name = std::str::from_utf8(&archive[110..name_end - 1])
                .unwrap()
                .to_owned();
            assert_eq!(archive[name_end - 1], 0);
            let start = name_end.next_multiple_of(4);
            let end = start + usize::try_from(size).unwrap();
            if name == "TRAILER!!!" {
                assert_eq!(archive.len(), start);
                return entries;
            }
            entries.push((name, mode, device, archive[start..end].to_vec()));
            archive = &archive[end.next_multiple_of(4)..];
        }
    }

    #[test]
    fn each_kind_of_entry_has_its_mode() {
        let mut archive = Archive::default();
        archive.directory("d", 0o755);
        archive.character_device("d/console", 0o600, 5, 1);
        archive.symlink("l", "d");
        archive.file("f", 0o644, b"12345");
        assert_eq!(
            read(&archive.finish()),
            [
                ("d".to_owned(), 0o040_755, (0, 0), vec![]),
                ("d/console".to_owned(), 0o020_600, (5, 1), vec![]),
                ("l".to_owned(), 0o120_777, (0, 0), b"d".to_vec()),
                ("f".to_owned(), 0o100_644, (0, 0), b"12345".to_vec()),
            ]
        );
    }

    proptest! {
        #[test]
        fn contents_come_back_and_bytes_are_reproducible(
            files in proptest::collection::vec(("[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..50)), 0..6),
        ) {
            let write = || {
                let mut archive = Archive::default();
                for (name, contents) in &files {
                    archive.file(name, 0o600, contents);
                }
                archive.finish()
            };
            let bytes = write();
            prop_assert_eq!(&bytes, &write());
            let back: Vec<_> = read(&bytes).into_iter().map(|(name, _, _, contents)| (name, contents)).collect();
            prop_assert_eq!(back, files);
        }
    }
}
