//! Looks for QEMU's system emulator.
//!
//! Owns the program's name and what counts as found. It must not start it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, path};

use rustix::fs::{Access, access};

use crate::hypervisor::{Qemu, QemuUnusable};

/// The emulator of this architecture.
const PROGRAM: &str = "qemu-system-x86_64";

/// The emulator that `named` (the variable `KATA_QEMU`) says, else the first on `search` (`PATH`).
pub(crate) fn find(named: Option<OsString>, search: Option<OsString>) -> Result<Qemu, QemuUnusable> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let binary = PathBuf::from(named);
        return match executable(&binary) {
            Some(binary) => Ok(Qemu { binary }),
            None => Err(QemuUnusable::NotExecutable { path: binary }),
        };
    }
    env::split_paths(&search.unwrap_or_default())
        .filter(|directory| directory.is_absolute())
        .find_map(|directory| executable(&directory.join(PROGRAM)))
        .map(|binary| Qemu { binary })
        .ok_or_else(|| QemuUnusable::NotFound {
            program: PROGRAM.to_owned(),
        })
}

/// The absolute path, when it is a file that this process may execute.
fn executable(path: &Path) -> Option<PathBuf> {
    (path.is_file() && access(path, Access::EXEC_OK).is_ok())
        .then(|| path::absolute(path).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_variable_wins_over_the_path_and_is_never_ignored() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let on_path = program(a.path(), PROGRAM, 0o755);
        let named = program(b.path(), "my-emulator", 0o755);
        let search = Some(a.path().as_os_str().to_owned());
        assert_eq!(find(None, search.clone()).unwrap().binary, on_path);
        assert_eq!(find(Some("".into()), search.clone()).unwrap().binary, on_path);
        assert_eq!(
            find(Some(named.clone().into()), search.clone()).unwrap().binary,
            named
        );
        let missing = b.path().join("missing");
        let error = find(Some(missing.clone().into()), search).unwrap_err();
        assert_eq!(
            error,
            QemuUnusable::NotExecutable {
                path: missing.clone()
            }
        );
        assert_eq!(
            error.to_string(),
            format!(
                "KATA_QEMU names {}, which is not an executable file",
                missing.display()
            )
        );
    }

    #[test]
    fn what_is_not_an_executable_file_is_passed_over() {
        let (a, b, c) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        program(a.path(), PROGRAM, 0o644);
        fs::create_dir(b.path().join(PROGRAM)).unwrap();
        let good = program(c.path(), PROGRAM, 0o755);
        let search = |directories: &[&Path]| Some(env::join_paths(directories).unwrap());
        let found = find(
            None,
            search(&[Path::new("relative"), a.path(), b.path(), c.path()]),
        );
        assert_eq!(found.unwrap().binary, good);
        let error = find(None, search(&[a.path(), b.path()])).unwrap_err();
        assert!(
            error.to_string().contains("apt-get install qemu-system-x86"),
            "{error}"
        );
        assert!(find(None, None).is_err());
    }
}
