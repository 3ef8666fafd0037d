//! What an executable names: its interpreter, and the libraries it is linked to. Pure.
//!
//! Either an ELF file (System V gABI, chapter 5; `ld.so(8)` for the search path) or a script with `#!`. Whatever else a
//! file is, and however it is damaged, it names less or nothing.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, FileHeader32, FileHeader64, PT_DYNAMIC,
    PT_INTERP, PT_LOAD,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef, StringTable};

/// The longest first line of a script that is looked at; Linux looks at 256 bytes.
const LONGEST_LINE: usize = 256;
/// The largest table of a file that is looked at, in bytes.
const LARGEST_TABLE: u64 = 64 << 10;
/// The largest table of names; only names that are asked for are read.
const LARGEST_NAMES: u64 = 64 << 20;
/// The longest name.
const LONGEST_NAME: usize = 4096;
/// Libraries of one program that are looked for.
const MOST_LIBRARIES: usize = 64;

/// What a program needs to be started.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) interpreter: Option<PathBuf>,
    /// Names or paths.
    pub(crate) libraries: Vec<OsString>,
    /// Directories where it wants them to be looked for; `$ORIGIN` in them is its own.
    pub(crate) search: Vec<PathBuf>,
}

/// Reads what a file names; `None` if it is no program. Before it is read beyond its beginning, `loaded` is told how
/// much of it will be needed, in bytes from its first one.
pub(super) fn of(mut file: impl Read + Seek, loaded: impl FnOnce(u64)) -> Option<Needs> {
    let mut line = Vec::with_capacity(LONGEST_LINE);
    file.by_ref()
        .take(LONGEST_LINE as u64)
        .read_to_end(&mut line)
        .ok()?;
    if let Some(line) = line.strip_prefix(b"#!") {
        loaded(u64::MAX);
        return script(line);
    }
    file.seek(SeekFrom::Start(0)).ok()?;
    let cache = ReadCache::new(file);
    match FileKind::parse(&cache).ok()? {
        FileKind::Elf64 => elf::<FileHeader64<Endianness>, _>(&cache, loaded),
        FileKind::Elf32 => elf::<FileHeader32<Endianness>, _>(&cache, loaded),
        _ => None,
    }
}

fn script(line: &[u8]) -> Option<Needs> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let mut words = words.filter(|word| !word.is_empty()).map(OsStr::from_bytes);
    let interpreter = PathBuf::from(words.next()?);
    Some(Needs {
        interpreter: Some(interpreter).filter(|path| path.is_absolute()),
        ..Needs::default()
    })
}

fn elf<'data, Elf: FileHeader, R: ReadRef<'data>>(data: R, loaded: impl FnOnce(u64)) -> Option<Needs> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    let of_kind = |kind| {
        segments
            .iter()
            .filter(move |segment| segment.p_type(endian) == kind)
    };
    let end = |segment: &Elf::ProgramHeader| {
        let (offset, size) = segment.file_range(endian);
        offset.saturating_add(size)
    };
    loaded(of_kind(PT_LOAD).map(end).max()?);
    let mut needs = Needs::default();
    if let Some(segment) = of_kind(PT_INTERP).next()
        && segment.file_range(endian).1 <= LARGEST_TABLE
        && let Ok(Some(path)) = segment.interpreter(endian, data)
    {
        needs.interpreter = Some(PathBuf::from(OsStr::from_bytes(path))).filter(|path| path.is_absolute());
    }
    let dynamic = of_kind(PT_DYNAMIC).next();
    let Some(dynamic) = dynamic.filter(|segment| segment.file_range(endian).1 <= LARGEST_TABLE) else {
        return Some(needs);
    };
    let Ok(Some(entries)) = dynamic.dynamic(endian, data) else {
        return Some(needs);
    };
    let mut names = Vec::new();
    let (mut table, mut length) = (None, None);
    for entry in entries {
        let value: u64 = entry.d_val(endian).into();
        match entry.d_tag(endian) {
            DT_NULL => break,
            DT_STRTAB => table = Some(value),
            DT_STRSZ => length = Some(value),
            tag @ (DT_NEEDED | DT_RUNPATH | DT_RPATH) if names.len() < MOST_LIBRARIES => {
                names.push((tag, value));
            }
            _ => {}
        }
    }
    let (Some(table), Some(length)) = (table, length) else {
        return Some(needs);
    };
    // An address in memory; what is loaded there says where that is in the file.
    let Some(at) = of_kind(PT_LOAD).find_map(|segment| {
        let within = table.checked_sub(segment.p_vaddr(endian).into())?;
        let (offset, size) = segment.file_range(endian);
        (within < size).then(|| offset.checked_add(within)).flatten()
    }) else {
        return Some(needs);
    };
    let strings = StringTable::new(data, at, at.saturating_add(length.min(LARGEST_NAMES)));
    for (tag, place) in names {
        let name = u32::try_from(place)
            .ok()
            .and_then(|place| strings.get(place).ok());
        let Some(name) = name.filter(|name| !name.is_empty() && name.len() <= LONGEST_NAME) else {
            continue;
        };
        if tag == DT_NEEDED {
            needs.libraries.push(OsStr::from_bytes(name).to_owned());
        } else {
            let dirs = name.split(|byte| *byte == b':').filter(|dir| !dir.is_empty());
            needs
                .search
                .extend(dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))));
        }
    }
    Some(needs)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::{self, File};
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn of_bytes(bytes: &[u8]) -> Option<Needs> {
        of(Cursor::new(bytes), |_| {})
    }

    /// This test is a program of this machine.
    #[test]
    fn a_program_names_its_loader_and_its_libraries() {
        let file = File::open("/proc/self/exe").unwrap();
        let size = file.metadata().unwrap().len();
        let mut loaded = 0;
        let needs = of(&file, |end| loaded = end).unwrap();
        assert!(
            loaded > 0 && loaded < size,
            "not what is for debuggers: {loaded} of {size}"
        );
        let interpreter = needs.interpreter.unwrap();
        assert!(interpreter.exists(), "{interpreter:?}");
        assert!(
            needs.libraries.iter().any(|name| name == "libc.so.6"),
            "{:?}",
            needs.libraries
        );
        assert_eq!(needs.search, Vec::<PathBuf>::new());
    }

    #[test]
    fn a_script_names_its_interpreter() {
        let named = |line: &str| of_bytes(line.as_bytes()).and_then(|needs| needs.interpreter);
        assert_eq!(named("#!/bin/sh -e\nexit\n"), Some("/bin/sh".into()));
        assert_eq!(named("#! /usr/bin/env python3\n"), Some("/usr/bin/env".into()));
        for nothing in ["#!\n", "#!sh\n", "", "plain text", "\x7fELF"] {
            assert_eq!(named(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_program_that_is_cut_off_names_less() {
        let whole = fs::read("/proc/self/exe").unwrap();
        for length in (0..2048).chain((2048..whole.len()).step_by(whole.len() / 64)) {
            let _named = of_bytes(&whole[..length]);
        }
    }

    proptest! {
        /// A small program whose head, with the tables that say where everything is, says something else.
        #[test]
        fn whatever_a_program_says_is_borne(changes in proptest::collection::vec((0_usize..1024, any::<u8>()), 1..32)) {
            thread_local! {
                static WHOLE: Vec<u8> = fs::read("/bin/true").unwrap();
            }
            let needs = WHOLE.with(|whole| {
                let mut damaged = whole.clone();
                for (at, byte) in changes {
                    damaged[at] = byte;
                }
                of_bytes(&damaged)
            });
            if let Some(needs) = needs {
                prop_assert!(needs.libraries.len() <= MOST_LIBRARIES);
                prop_assert!(needs.libraries.iter().all(|name| name.len() <= LONGEST_NAME));
            }
        }
    }
}
