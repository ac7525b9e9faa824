//! What a program of this machine needs to run elsewhere: the libraries that its loader finds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::process::{self, ProcessError};

/// The libraries and the loader of these programs, by the paths that ldd(1) gives them.
///
/// # Errors
/// When ldd cannot be run, or a program is none for this machine.
pub(super) fn of<'a>(
    programs: impl IntoIterator<Item = &'a Path>,
) -> Result<BTreeSet<PathBuf>, ProcessError> {
    let mut found = BTreeSet::new();
    for program in programs {
        if let Some(text) = ask(program)? {
            found.extend(text.lines().filter_map(path_in));
        }
    }
    Ok(found)
}

/// What ldd says of a program; nothing of one that needs no library.
fn ask(program: &Path) -> Result<Option<String>, ProcessError> {
    match process::read(process::command("ldd", [program]).env("LC_ALL", "C")) {
        Ok(text) => Ok(Some(text)),
        Err(ProcessError::Failed { tail, .. }) if tail.contains("not a dynamic executable") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file of a line such as `libz.so.1 => /lib/libz.so.1 (0x…)` or `/lib64/ld-linux.so.2 (0x…)`; the
/// kernel's own, `linux-vdso.so.1 (0x…)`, is no file.
fn path_in(line: &str) -> Option<PathBuf> {
    let found = line.split_once(" => ").map_or(line, |(_, found)| found);
    let (path, _) = found.trim().rsplit_once(" (0x")?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_taken_from_every_form_of_line() {
        let check = |line, path: Option<&str>| assert_eq!(path_in(line), path.map(PathBuf::from), "{line}");
        check("\tlibz.so.1 => /lib/libz.so.1 (0x00007f)", Some("/lib/libz.so.1"));
        check(
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)",
            Some("/lib64/ld-linux-x86-64.so.2"),
        );
        check("\tlinux-vdso.so.1 (0x00007f)", None);
        check("\tlibgone.so.1 => not found", None);
    }

    #[test]
    fn this_test_needs_the_c_library() {
        let me = std::env::current_exe().unwrap();
        assert!(
            of([me.as_path()])
                .unwrap()
                .iter()
                .any(|path| path.ends_with("libc.so.6"))
        );
    }
}
