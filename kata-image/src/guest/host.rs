//! Guest files made of a kernel that this machine has anyway: unpacked from a bzImage, with an initramfs of the
//! agent and the kernel's modules, and kept.
//!
//! ```text
//!  <guest directory>/host-<hash of kernel and agent>/{vmlinux, initramfs.cpio}
//! ```
//!
//! It must not know which kernel is best.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::checked::stamp;
use super::{Asset, AssetError, Assets, LayoutError, initramfs, install};
use crate::kernel::{ExtractError, FindKernelError, HostKernels, Kernel, KernelError, extract_vmlinux};

/// Why this machine's own kernels are of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKernelError {
    /// None can run a sandbox.
    #[error(transparent)]
    Find(#[from] FindKernelError),
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot be unpacked.
    #[error("cannot extract the kernel of {}", .path.display())]
    Extract {
        /// The bzImage.
        path: PathBuf,
        /// Why.
        #[source]
        source: ExtractError,
    },
    /// The initramfs cannot be made.
    #[error("cannot make an initramfs for {}", .path.display())]
    Initramfs {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// The agent is missing, or the result cannot be kept.
    #[error(transparent)]
    Asset(#[from] Box<AssetError>),
}

/// What there is to boot.
#[derive(Debug)]
pub(super) enum Found {
    /// Files that were made before.
    Made(Assets),
    /// A kernel to make them of.
    Kernel(Kernel),
}

/// The best kernel of this machine for `agent`; `refused` are those that were better and do not do. One of which
/// the files are there is not read again.
pub(super) fn find(
    directory: &Path,
    agent: &Path,
    mut refused: Vec<KernelError>,
) -> Result<Found, HostKernelError> {
    let kernels = HostKernels::of_this_machine().map_err(FindKernelError::from)?;
    for path in kernels.paths() {
        let assets = assets(directory, &path, agent)?;
        if assets.initramfs.is_file() {
            return Ok(Found::Made(assets));
        }
        match kernels.usable(&path) {
            Ok(kernel) => return Ok(Found::Kernel(kernel)),
            Err(error) => refused.push(error),
        }
    }
    Err(kernels.none(refused).into())
}

/// Where the files for a kernel and an agent are kept. The initramfs is written last.
fn assets(directory: &Path, kernel: &Path, agent: &Path) -> Result<Assets, HostKernelError> {
    let place = directory.join(format!("host-{}", name_of(&[kernel, agent])?));
    Ok(Assets {
        kernel: place.join(Asset::Kernel.file_name()),
        initramfs: place.join(Asset::Initramfs.file_name()),
    })
}

/// The files for `kernel` and `agent`, made below `directory` unless they are there.
pub(super) fn make(directory: &Path, kernel: &Kernel, agent: &Path) -> Result<Assets, HostKernelError> {
    let assets = assets(directory, kernel.path(), agent)?;
    if assets.initramfs.is_file() {
        return Ok(assets);
    }
    let path = kernel.path().to_owned();
    let vmlinux = extract_vmlinux(&read(&path)?).map_err(|source| HostKernelError::Extract {
        path: path.clone(),
        source,
    })?;
    let archive = initramfs(&read(agent)?, kernel.modules())
        .map_err(|source| HostKernelError::Initramfs { path, source })?;
    let place = assets.kernel.parent().unwrap_or(directory);
    for (asset, bytes) in [(Asset::Kernel, vmlinux), (Asset::Initramfs, archive)] {
        install(place, asset.file_name(), &bytes, 0o644).map_err(Box::new)?;
    }
    Ok(assets)
}

/// A hash of what tells one file from another without reading it.
fn name_of(files: &[&Path]) -> Result<String, HostKernelError> {
    let mut hasher = Sha256::new();
    for path in files {
        stamp(&mut hasher, path).map_err(|source| HostKernelError::Read {
            path: path.to_path_buf(),
            source,
        })?;
    }
    Ok(crate::oci::hex(&hasher.finalize()[..8]))
}

fn read(path: &Path) -> Result<Vec<u8>, HostKernelError> {
    fs::read(path).map_err(|source| HostKernelError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::elf::tests::program;

    #[test]
    fn what_was_made_once_is_used_again_until_the_agent_changes() {
        let root = tempfile::tempdir().unwrap();
        let (kernel, agent) = (root.path().join("vmlinuz"), root.path().join("agent"));
        fs::write(&kernel, program(&[(1, b"Linux version 6.1.0 ")])).unwrap();
        fs::write(&agent, program(&[(1, b"one")])).unwrap();
        let kernel = Kernel::inspect(&kernel).unwrap();
        let guest = root.path().join("guest");
        let first = make(&guest, &kernel, &agent).unwrap();
        let made = fs::metadata(&first.initramfs).unwrap().modified().unwrap();
        assert_eq!(make(&guest, &kernel, &agent).unwrap(), first);
        assert_eq!(fs::metadata(&first.initramfs).unwrap().modified().unwrap(), made);
        fs::write(&agent, program(&[(1, b"other")])).unwrap();
        let second = make(&guest, &kernel, &agent).unwrap();
        assert_ne!(second, first);
        assert!(
            fs::read(&second.initramfs)
                .unwrap()
                .windows(5)
                .any(|bytes| bytes == b"other")
        );
    }

    #[test]
    fn an_agent_that_is_not_static_is_not_embedded() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("vmlinuz");
        fs::write(&kernel, program(&[])).unwrap();
        let kernel = Kernel::inspect(&kernel).unwrap();
        let this = std::env::current_exe().unwrap();
        let error = make(&root.path().join("guest"), &kernel, &this).unwrap_err();
        assert!(matches!(
            error,
            HostKernelError::Initramfs {
                source: LayoutError::Agent(_),
                ..
            }
        ));
        assert!(!root.path().join("guest").exists());
    }
}
