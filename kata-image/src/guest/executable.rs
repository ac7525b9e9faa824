//! Whether an executable runs where no file but itself exists.

use crate::kernel::elf::{PT_INTERP, segments};

/// Why an executable is not static, or not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotStatic {
    /// Not a 64-bit little-endian ELF file, or a damaged one.
    #[error("it is no 64-bit ELF executable")]
    NotElf,
    /// It asks for a dynamic loader.
    #[error("it asks for a dynamic loader (PT_INTERP); is the static C library installed?")]
    Interpreter,
}

/// Checks that an ELF file names no dynamic loader (ELF-64 Object File Format 1.5, table 16).
///
/// # Errors
///
/// When it does, or is no ELF file.
pub fn check_static(file: &[u8]) -> Result<(), NotStatic> {
    let segments = segments(file).ok_or(NotStatic::NotElf)?;
    if segments.iter().any(|segment| segment.kind == PT_INTERP) {
        return Err(NotStatic::Interpreter);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::elf::tests::program;

    #[test]
    fn a_loader_is_found_wherever_it_stands() {
        assert_eq!(check_static(&program(&[(1, b""), (2, b"")])), Ok(()));
        let dynamic = program(&[(1, &b"code"[..]), (PT_INTERP, b"/lib/ld")]);
        assert_eq!(check_static(&dynamic), Err(NotStatic::Interpreter));
    }

    #[test]
    fn this_test_is_a_dynamic_executable() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static(&file), Err(NotStatic::Interpreter));
    }

    #[test]
    fn what_is_no_elf_file_or_cut_short_is_refused() {
        assert_eq!(check_static(b"#!/bin/sh\n"), Err(NotStatic::NotElf));
        let file = program(&[(1, b""), (2, b"")]);
        assert_eq!(check_static(&file[..file.len() - 60]), Err(NotStatic::NotElf));
    }
}
