//! The two facts needed of an ELF file: whether it asks for an interpreter, and what a section contains.
//!
//! Only little-endian ELF64, as x86-64 has. Every read is bounds-checked; a malformed file is "no".

const ELF64_LE: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const EM_X86_64: u16 = 62;
const PT_INTERP: u32 = 3;

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes(file, at).map(u32::from_le_bytes)
}

fn usize_at(file: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes(file, at)?)).ok()
}

/// Start of entry `index` of a table at `table` with entries of `size` bytes.
fn entry(table: usize, size: u16, index: u16) -> Option<usize> {
    table.checked_add(usize::from(size).checked_mul(usize::from(index))?)
}

/// Whether `file` is an x86-64 executable without `PT_INTERP`, which runs where there are no libraries.
pub(super) fn is_static_executable(file: &[u8]) -> bool {
    has_no_interpreter(file).unwrap_or(false)
}

fn has_no_interpreter(file: &[u8]) -> Option<bool> {
    if !file.starts_with(&ELF64_LE) || u16_at(file, 18)? != EM_X86_64 {
        return Some(false);
    }
    let (table, size, count) = (usize_at(file, 32)?, u16_at(file, 54)?, u16_at(file, 56)?);
    for index in 0..count {
        if u32_at(file, entry(table, size, index)?)? == PT_INTERP {
            return Some(false);
        }
    }
    Some(count > 0)
}

/// The contents of the section called `name`.
pub(super) fn section<'f>(file: &'f [u8], name: &[u8]) -> Option<&'f [u8]> {
    if !file.starts_with(&ELF64_LE) {
        return None;
    }
    let (table, size, count) = (usize_at(file, 40)?, u16_at(file, 58)?, u16_at(file, 60)?);
    let contents = |header: usize| -> Option<&'f [u8]> {
        let (offset, length) = (usize_at(file, header + 24)?, usize_at(file, header + 32)?);
        file.get(offset..offset.checked_add(length)?)
    };
    let names = contents(entry(table, size, u16_at(file, 62)?)?)?;
    (0..count).find_map(|index| {
        let header = entry(table, size, index)?;
        let start = names.get(usize::try_from(u32_at(file, header)?).ok()?..)?;
        let found = start.split(|&b| b == 0).next()?;
        if found == name { contents(header) } else { None }
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn this_test() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_dynamic_executable_has_an_interpreter() {
        let file = this_test();
        assert!(!is_static_executable(&file));
        let interpreter = section(&file, b".interp").unwrap();
        assert!(
            interpreter.ends_with(b"\0") && interpreter.starts_with(b"/lib"),
            "{interpreter:?}"
        );
        assert_eq!(section(&file, b".no-such-section"), None);
    }

    #[test]
    fn text_is_not_an_executable() {
        assert!(!is_static_executable(b"#!/bin/sh\n"));
        assert!(!is_static_executable(b""));
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..64, value: u8, cut in 0usize..4096) {
            let mut file = vec![0; 4096];
            file[..6].copy_from_slice(&ELF64_LE);
            file[18] = 62;
            file[32..34].copy_from_slice(&64u16.to_le_bytes());
            file[54] = 56;
            file[56] = 9;
            file[at] = value;
            file.truncate(cut);
            let _ = is_static_executable(&file);
            let _ = section(&file, b".modinfo");
        }
    }
}
