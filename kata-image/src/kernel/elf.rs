//! The little of ELF-64 (elf(5)) that tells a module's own description: its section `.modinfo`.

const SECTION_TABLE_OFFSET: usize = 40;
const SECTION_ENTRY_SIZE: usize = 58;
const SECTION_COUNT: usize = 60;
const NAMES_INDEX: usize = 62;

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
    let name = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
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

fn u64_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let number = u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?);
    usize::try_from(number).ok()
}

#[cfg(test)]
pub(super) mod tests {
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
