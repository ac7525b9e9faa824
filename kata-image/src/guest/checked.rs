//! Kernels that were looked at before, so that a start does not read one again that was found good.
//!
//! ```text
//!  <guest directory>/checked    a hash a line, the newest last: of a kernel's path and metadata, of its
//!                               configuration's, and of what was asked of it
//! ```
//!
//! A kernel that is refused is not noted. It must not know which kernel is best.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::install;
use crate::kernel::{Feature, Kernel, KernelError};

/// Name of the file.
const NAME: &str = "checked";
/// More kernels than a machine has in use.
const KEPT: usize = 16;

/// Checks that a kernel can run a sandbox with an initramfs of its own.
///
/// # Errors
/// When it cannot be read, is no kernel, or lacks something.
pub(super) fn check(directory: &Path, kernel: &Path) -> Result<(), KernelError> {
    let hash = fingerprint(kernel).map_err(|source| KernelError::Read {
        path: kernel.to_owned(),
        source,
    })?;
    let noted = fs::read_to_string(directory.join(NAME)).unwrap_or_default();
    if noted.lines().any(|line| line == hash) {
        return Ok(());
    }
    Kernel::inspect(kernel)?.check_with_initramfs()?;
    note(directory, &noted, &hash);
    Ok(())
}

/// What is not noted is looked at again the next time, which is slower and not wrong: no error.
fn note(directory: &Path, noted: &str, hash: &str) {
    let mut lines: Vec<&str> = noted.lines().collect();
    lines.push(hash);
    let kept = lines.split_off(lines.len().saturating_sub(KEPT));
    if let Err(error) = install(directory, NAME, (kept.join("\n") + "\n").as_bytes(), 0o644) {
        log::debug!("{error}; the kernel will be looked at again");
    }
}

fn fingerprint(kernel: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    stamp(&mut hasher, kernel)?;
    let mut configuration = kernel.as_os_str().to_owned();
    configuration.push(".config");
    // Most kernels have none there.
    let _ = stamp(&mut hasher, Path::new(&configuration));
    let needed = Feature::ALL.iter().filter(|feature| feature.is_needed());
    for option in needed.flat_map(|feature| feature.options()) {
        hasher.update(option);
    }
    Ok(crate::oci::hex(&hasher.finalize()))
}

/// Adds what tells one file from another without reading it.
pub(super) fn stamp(hasher: &mut Sha256, path: &Path) -> io::Result<()> {
    let file = fs::metadata(path)?;
    hasher.update(path.as_os_str().as_encoded_bytes());
    for number in [file.dev(), file.ino(), file.len()] {
        hasher.update(number.to_le_bytes());
    }
    for number in [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()] {
        hasher.update(number.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::vmlinux_of;

    fn notes(directory: &Path) -> usize {
        let text = fs::read_to_string(directory.join(NAME)).unwrap_or_default();
        text.lines().count()
    }

    #[test]
    fn a_good_kernel_is_read_once_until_it_changes() {
        let root = tempfile::tempdir().unwrap();
        let (directory, kernel) = (root.path().join("guest"), root.path().join("vmlinux"));
        fs::write(&kernel, vmlinux_of(&[])).unwrap();
        check(&directory, &kernel).unwrap();
        assert_eq!(notes(&directory), 1);
        // A file that says that it was looked at is not opened again.
        let noted = fs::read_to_string(directory.join(NAME)).unwrap();
        fs::write(&kernel, "garbage, but noted").unwrap();
        let lie = format!("{noted}{}\n", fingerprint(&kernel).unwrap());
        fs::write(directory.join(NAME), &lie).unwrap();
        check(&directory, &kernel).unwrap();
        assert_eq!(fs::read_to_string(directory.join(NAME)).unwrap(), lie);
        // One that changed is.
        fs::write(&kernel, "other garbage").unwrap();
        let error = check(&directory, &kernel).unwrap_err();
        assert!(matches!(error, KernelError::Extract { .. }), "{error}");
        assert_eq!(notes(&directory), 2);
    }

    #[test]
    fn what_is_noted_does_not_grow_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("vmlinux");
        for size in 0..2 * KEPT {
            fs::write(&kernel, [vmlinux_of(&[]), vec![0; size]].concat()).unwrap();
            check(root.path(), &kernel).unwrap();
        }
        assert_eq!(notes(root.path()), KEPT);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let (file, kernel) = (root.path().join("file"), root.path().join("vmlinux"));
        fs::write(&file, "").unwrap();
        fs::write(&kernel, vmlinux_of(&[])).unwrap();
        check(&file.join("below"), &kernel).unwrap();
    }
}
