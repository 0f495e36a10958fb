//! The build-id of an ELF file: the note that names the exact build of a program, by which CRIU
//! and we refuse to put an old state under new code. Format: System V ABI, chapter 5 (program
//! header `PT_NOTE`), and the GNU extension `NT_GNU_BUILD_ID`.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
const MAX_HEADERS: u16 = 64;
const MAX_NOTES_BYTES: u64 = 64 << 10;

/// Reads the build-id of a 64-bit little-endian ELF file as hexadecimal digits; `None` if it is no
/// such file or has none.
pub fn read(file: &mut File) -> Option<String> {
    let mut header = [0; 64];
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut header).ok()?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(&header, 32)?;
    let size = u64::from(u16_at(&header, 54)?);
    let count = u16_at(&header, 56)?.min(MAX_HEADERS);
    for index in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.seek(SeekFrom::Start(table.checked_add(index * size)?)).ok()?;
        file.read_exact(&mut entry).ok()?;
        if u32_at(&entry, 0)? != PT_NOTE {
            continue;
        }
        let mut notes = Vec::new();
        file.seek(SeekFrom::Start(u64_at(&entry, 8)?)).ok()?;
        let length = u64_at(&entry, 32)?.min(MAX_NOTES_BYTES);
        file.by_ref().take(length).read_to_end(&mut notes).ok()?;
        if let Some(id) = find(&notes) {
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    None
}

/// Walks notes: name size, descriptor size, type, then both padded to four bytes.
fn find(mut notes: &[u8]) -> Option<&[u8]> {
    while notes.len() >= 12 {
        let name = u32_at(notes, 0)? as usize;
        let descriptor = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let start = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = start.checked_add(descriptor)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..)?.starts_with(b"GNU\0") {
            return notes.get(start..end);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_host_has_one_and_a_script_has_none() {
        let id = read(&mut File::open("/bin/sh").unwrap()).unwrap();
        assert!(id.len() >= 16, "{id}");
        assert_eq!(read(&mut File::open("/etc/passwd").unwrap()), None);
    }

    #[test]
    fn notes_cut_anywhere_are_no_build_id_and_no_panic() {
        let mut note = vec![4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
        note.extend(b"GNU\0\x01\x02\x03\x04");
        assert_eq!(find(&note), Some(&[1, 2, 3, 4][..]));
        for end in 0..note.len() {
            assert_eq!(find(&note[..end]), None);
        }
        assert_eq!(find(&[0xff; 40]), None);
    }
}
