//! Whether an executable runs where no file but itself exists.

/// Why an executable is not static, or not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotStatic {
    /// Not a 64-bit little-endian ELF file, or a damaged one.
    #[error("it is no 64-bit ELF executable")]
    NotElf,
    /// It asks for a dynamic loader.
    #[error("it asks for a dynamic loader (PT_INTERP); is the static C library installed?")]
    Interpreter,
}

/// Program header type of the path of a dynamic loader (ELF-64 Object File Format 1.5, table 16).
const PT_INTERP: u32 = 3;

/// Offsets and sizes of the ELF64 file header (table 1) and of a program header (table 15).
const E_PHOFF: usize = 0x20;
const E_PHENTSIZE: usize = 0x36;
const E_PHNUM: usize = 0x38;

/// Checks that an ELF file names no dynamic loader.
pub(crate) fn check_static(file: &[u8]) -> Result<(), NotStatic> {
    const CLASS_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    if !file.starts_with(CLASS_64_LITTLE_ENDIAN) {
        return Err(NotStatic::NotElf);
    }
    let table = usize::try_from(u64::from_le_bytes(field(file, E_PHOFF)?)).map_err(|_| NotStatic::NotElf)?;
    let entry = usize::from(u16::from_le_bytes(field(file, E_PHENTSIZE)?));
    let count = usize::from(u16::from_le_bytes(field(file, E_PHNUM)?));
    for number in 0..count {
        let offset = table.checked_add(number * entry).ok_or(NotStatic::NotElf)?;
        if u32::from_le_bytes(field(file, offset)?) == PT_INTERP {
            return Err(NotStatic::Interpreter);
        }
    }
    Ok(())
}

fn field<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], NotStatic> {
    file.get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(NotStatic::NotElf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with program headers of these types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[E_PHOFF] = 0x40;
        file[E_PHENTSIZE] = 56;
        file[E_PHNUM] = types.len().try_into().unwrap();
        for kind in types {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn a_loader_is_found_wherever_it_stands() {
        assert_eq!(check_static(&elf(&[1, 2])), Ok(()));
        assert_eq!(check_static(&elf(&[1, 3])), Err(NotStatic::Interpreter));
    }

    #[test]
    fn this_test_is_a_dynamic_executable() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static(&file), Err(NotStatic::Interpreter));
    }

    #[test]
    fn what_is_no_elf_file_or_cut_short_is_refused() {
        assert_eq!(check_static(b"#!/bin/sh\n"), Err(NotStatic::NotElf));
        let file = elf(&[1, 2]);
        assert_eq!(check_static(&file[..file.len() - 60]), Err(NotStatic::NotElf));
    }
}
