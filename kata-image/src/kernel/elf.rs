//! The little of ELF-64 (elf(5)) that is asked for: a module's own description, which is its section `.modinfo`,
//! and a program's segments and notes. Any bytes may be given to it.

/// Where the program headers are, and how large and how many they are.
const SEGMENT_TABLE_OFFSET: usize = 32;
const SEGMENT_ENTRY_SIZE: usize = 54;
const SEGMENT_COUNT: usize = 56;

/// Program header type of the path of a dynamic loader.
pub(crate) const PT_INTERP: u32 = 3;
/// Program header type of notes.
const PT_NOTE: u32 = 4;

const SECTION_TABLE_OFFSET: usize = 40;
const SECTION_ENTRY_SIZE: usize = 58;
const SECTION_COUNT: usize = 60;
const NAMES_INDEX: usize = 62;

/// A segment of a program: its type and its bytes, fewer where the file is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) kind: u32,
    pub(crate) bytes: &'a [u8],
}

/// The segments of a program. `None` when this is no 64-bit little-endian ELF file, or the table is cut short.
pub(crate) fn segments(file: &[u8]) -> Option<Vec<Segment<'_>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64_at(file, SEGMENT_TABLE_OFFSET)?;
    let entry = usize::from(u16_at(file, SEGMENT_ENTRY_SIZE)?);
    (0..usize::from(u16_at(file, SEGMENT_COUNT)?))
        .map(|index| {
            let header = file.get(table.checked_add(index.checked_mul(entry)?)?..)?;
            let (start, size) = (u64_at(header, 8)?, u64_at(header, 32)?);
            let bytes = start.checked_add(size).and_then(|end| file.get(start..end));
            Some(Segment {
                kind: u32_at(header, 0)?,
                bytes: bytes.unwrap_or_default(),
            })
        })
        .collect()
}

/// Whether a program has a note of this owner and type (elf(5), "Notes").
pub(super) fn has_note(segments: &[Segment<'_>], owner: &[u8], kind: u32) -> bool {
    let notes = segments.iter().filter(|segment| segment.kind == PT_NOTE);
    notes.map(|segment| segment.bytes).any(|mut rest| {
        while let Some((name, found, next)) = note(rest) {
            if name.strip_suffix(b"\0").unwrap_or(name) == owner && found == kind {
                return true;
            }
            rest = next;
        }
        false
    })
}

/// The first note's owner and type, and what follows it.
fn note(bytes: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let size = |offset| usize::try_from(u32_at(bytes, offset)?).ok();
    let (name, description) = (size(0)?, size(4)?);
    let padded = |size: usize| size.checked_next_multiple_of(4);
    let after_name = padded(name)?.checked_add(12)?;
    let end = after_name.checked_add(padded(description)?)?;
    let rest = bytes.get(end..)?;
    Some((bytes.get(12..name.checked_add(12)?)?, u32_at(bytes, 8)?, rest))
}

/// The values of `key` in the module's description, which is a list of `key=value` ended by zero bytes.
/// `None` when this is no ELF file with such a section.
pub(super) fn modinfo<'a>(module: &'a [u8], key: &str) -> Option<Vec<&'a str>> {
    let description = section(module, b".modinfo")?;
    let lines = description
        .split(|byte| *byte == 0)
        .filter_map(|line| std::str::from_utf8(line).ok());
    Some(
        lines
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .collect(),
    )
}

fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (_, names) = header(file, usize::from(u16_at(file, NAMES_INDEX)?))?;
    (0..usize::from(u16_at(file, SECTION_COUNT)?)).find_map(|index| {
        let (name_offset, contents) = header(file, index)?;
        let found = names.get(name_offset..)?.split(|byte| *byte == 0).next()?;
        (found == name).then_some(contents)
    })
}

/// Offset of a section's name, and its contents.
fn header(file: &[u8], index: usize) -> Option<(usize, &[u8])> {
    let table = u64_at(file, SECTION_TABLE_OFFSET)?;
    let entry = usize::from(u16_at(file, SECTION_ENTRY_SIZE)?);
    let header = file.get(table.checked_add(index.checked_mul(entry)?)?..)?;
    let name = u32_at(header, 0)?;
    let (start, size) = (u64_at(header, 24)?, u64_at(header, 32)?);
    Some((
        usize::try_from(name).ok()?,
        file.get(start..start.checked_add(size)?).unwrap_or_default(),
    ))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let number = u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?);
    usize::try_from(number).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A relocatable file with nothing but this description.
    pub(in crate::kernel) fn module(description: &[&str]) -> Vec<u8> {
        let modinfo = description
            .iter()
            .flat_map(|line| [line.as_bytes(), b"\0"].concat())
            .collect::<Vec<_>>();
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (modinfo_at, names_at) = (64, 64 + modinfo.len());
        let table = names_at + names.len();
        file.extend(&modinfo);
        file.extend(names);
        for (name, start, size) in [
            (0, 0, 0),
            (1, modinfo_at, modinfo.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = [0; 64];
            header[0] = name;
            header[24..32].copy_from_slice(&start.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend(header);
        }
        file[SECTION_TABLE_OFFSET..SECTION_TABLE_OFFSET + 8].copy_from_slice(&table.to_le_bytes());
        file[SECTION_ENTRY_SIZE] = 64;
        file[SECTION_COUNT] = 3;
        file[NAMES_INDEX] = 2;
        file
    }

    /// A program with these segments.
    pub(crate) fn program(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[SEGMENT_TABLE_OFFSET] = 64;
        file[SEGMENT_ENTRY_SIZE] = 56;
        file[SEGMENT_COUNT] = segments.len().try_into().unwrap();
        for (index, (kind, bytes)) in segments.iter().enumerate() {
            let (at, start) = (64 + 56 * index, file.len());
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&start.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&bytes.len().to_le_bytes());
            file.extend(*bytes);
        }
        file
    }

    /// A note, as it stands in a segment.
    pub(in crate::kernel) fn note_of(owner: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [owner.len() + 1, description.len()] {
            bytes.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        for part in [&[owner, b"\0"].concat(), description] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn a_note_is_found_by_owner_and_type_behind_others() {
        let notes = [note_of(b"GNU", 18, b"abc"), note_of(b"Xen", 18, b"1234")].concat();
        let file = program(&[(1, b"code"), (PT_NOTE, &notes)]);
        let segments = segments(&file).unwrap();
        assert!(has_note(&segments, b"Xen", 18) && has_note(&segments, b"GNU", 18));
        assert!(!has_note(&segments, b"Xen", 19) && !has_note(&segments, b"Xe", 18));
        for length in 0..file.len() {
            super::segments(&file[..length]).map(|segments| has_note(&segments, b"Xen", 19));
        }
    }

    #[test]
    fn a_description_is_found_by_its_key() {
        let module = module(&["license=GPL", "depends=a,b", "alias=x", "alias=y"]);
        assert_eq!(modinfo(&module, "depends"), Some(vec!["a,b"]));
        assert_eq!(modinfo(&module, "alias"), Some(vec!["x", "y"]));
        assert_eq!(modinfo(&module, "lic"), Some(vec![]));
    }

    #[test]
    fn broken_files_have_none() {
        let module = module(&["depends="]);
        for length in 0..module.len() {
            modinfo(&module[..length], "depends");
        }
        assert_eq!(modinfo(b"\x7fELF", "depends"), None);
        assert_eq!(modinfo(&module[..100], "depends"), None);
    }
}
