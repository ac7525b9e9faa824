//! The guest assets: the files that every sandbox boots, whatever container it runs. Finds them, makes them of
//! this machine's own kernel where nobody else did, and puts them where they are found.
//!
//! ```text
//!  <guest directory>/tailored/      vmlinux, vmlinux.config, initramfs.cpio     taken where it is complete
//!                   /distribution/  the same                                    else
//!                   /host-<hash>/   made of an unpacked package or /boot        else
//!                   /kata-agent
//! ```
//!
//! An initramfs goes with its kernel: one that was not chosen is the one beside the kernel. A kernel is looked at
//! before it is booted, once: what was found good is noted in `<guest directory>/checked`.

mod checked;
mod executable;
mod host;
mod layout;
mod search;

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{CacheDirectoryError, cache_directory};
use crate::kernel::KernelError;
use search::Search;

pub use executable::{NotStatic, check_static};
pub use host::HostKernelError;
pub use layout::{LayoutError, initramfs};
pub(crate) use search::kernels;

/// What a virtual machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// An uncompressed kernel (ELF).
    pub kernel: PathBuf,
    /// An uncompressed cpio archive with the agent and the modules that the kernel needs.
    pub initramfs: PathBuf,
}

/// A kernel with its initramfs in the guest directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Set {
    /// Built for guests, with everything built in.
    Tailored,
    /// A distribution's, with the modules that it needs.
    Distribution,
}

impl Set {
    /// All of them, the best first.
    pub const ALL: &[Self] = &[Self::Tailored, Self::Distribution];

    /// Its directory's name in the [guest directory](directory).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tailored => "tailored",
            Self::Distribution => "distribution",
        }
    }

    /// Where its files are. They need not exist yet.
    ///
    /// # Errors
    ///
    /// When there is no cache directory.
    pub fn directory(self) -> Result<PathBuf, CacheDirectoryError> {
        Ok(directory()?.join(self.name()))
    }

    pub(crate) fn in_directory(self, directory: &Path) -> Assets {
        let place = directory.join(self.name());
        Assets {
            kernel: place.join(Asset::Kernel.file_name()),
            initramfs: place.join(Asset::Initramfs.file_name()),
        }
    }
}

/// Paths that a caller chose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Instead of the kernel that would be found.
    pub kernel: Option<PathBuf>,
    /// Instead of the initramfs that would be found.
    pub initramfs: Option<PathBuf>,
    /// Instead of the agent that would be found.
    pub agent: Option<PathBuf>,
}

/// One of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Asset {
    /// The guest's kernel.
    Kernel,
    /// The guest's first root filesystem.
    Initramfs,
    /// The agent on its own.
    Agent,
}

/// Why a guest asset is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssetError {
    /// It is in none of the places where it may be. The first existing place counts, so this names one place
    /// when the caller or the environment chose it.
    #[error(
        "the guest {} was not found in {}; run `cargo xtask quickstart` (or `cargo xtask guest`), or set {} to its path",
        .asset.noun(), list(.looked_in), .asset.variable()
    )]
    Missing {
        /// What was looked for.
        asset: Asset,
        /// The paths that were tried.
        looked_in: Vec<PathBuf>,
    },
    /// The kernel was chosen or found, and no initramfs lies beside it.
    #[error(
        "there is no initramfs for the kernel {}: {} does not exist; run `cargo xtask guest`, or set \
         KATA_INITRAMFS to one that has this kernel's modules", .kernel.display(), .path.display()
    )]
    NoInitramfs {
        /// The kernel.
        kernel: PathBuf,
        /// Where its initramfs should be.
        path: PathBuf,
    },
    /// The kernel that was chosen, or the best of the guest directory, cannot run a sandbox.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The guest directory has no kernel that does, and this machine's own do not do.
    #[error(
        "the guest kernel was not found in {}, and none of this machine can be used; run `cargo xtask quickstart` \
         (or `cargo xtask guest`), or set KATA_KERNEL to its path", list(.looked_in)
    )]
    NoKernel {
        /// The paths that were tried.
        looked_in: Vec<PathBuf>,
        /// What is wrong with this machine's kernels.
        #[source]
        source: Box<HostKernelError>,
    },
    /// There is no cache directory to look into.
    #[error("no place for guest files")]
    CacheDirectory(#[from] CacheDirectoryError),
    /// The name of a file to install is not a plain file name.
    #[error("{name:?} is not a plain file name")]
    Name {
        /// The name.
        name: String,
    },
    /// A file cannot be put into the guest directory.
    #[error("cannot write {}", .path.display())]
    Install {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

impl Asset {
    /// The environment variable that names this file.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Kernel => "KATA_KERNEL",
            Self::Initramfs => "KATA_INITRAMFS",
            Self::Agent => "KATA_AGENT",
        }
    }

    /// Its name: the agent's in the [guest directory](directory), the others' in the directory of a [`Set`].
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Kernel => "vmlinux",
            Self::Initramfs => "initramfs.cpio",
            Self::Agent => "kata-agent",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Agent => "agent",
        }
    }

    fn override_in(self, overrides: &Overrides) -> Option<&Path> {
        match self {
            Self::Kernel => overrides.kernel.as_deref(),
            Self::Initramfs => overrides.initramfs.as_deref(),
            Self::Agent => overrides.agent.as_deref(),
        }
    }

    /// The variable's value, unless it is empty.
    pub(crate) fn in_environment(self) -> Option<PathBuf> {
        env::var_os(self.variable())
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// Finds this file alone: the override, else its environment variable, else the guest directory; there an
    /// initramfs is the one beside the kernel that would be found. What was chosen by the first two is not
    /// silently replaced by another.
    ///
    /// # Errors
    ///
    /// When no regular file is there, or the kernel cannot run a sandbox.
    pub fn find(self, overrides: &Overrides) -> Result<PathBuf, AssetError> {
        match self {
            Self::Kernel => Search::new(overrides)?.kernel(),
            Self::Initramfs => Ok(Assets::find(overrides)?.initramfs),
            Self::Agent => Ok(Search::new(overrides)?.agent()?),
        }
    }
}

/// What a start would boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provision {
    /// These files.
    Ready(Assets),
    /// Files that it would make first, of this kernel of the machine's own and the agent.
    Makeable {
        /// The kernel.
        kernel: PathBuf,
    },
}

impl Assets {
    /// Finds a kernel that can run a sandbox, and its initramfs. The kernel is the override, else what `KATA_KERNEL`
    /// names, else the best of the [`Set`]s: a complete one before one without an initramfs, and none that
    /// [`Kernel::check`](crate::kernel::Kernel::check) refuses. The initramfs is the override, else what
    /// `KATA_INITRAMFS` names, else the one beside the kernel.
    ///
    /// # Errors
    ///
    /// When one is not there, or the kernel cannot run a sandbox; what was chosen is not silently replaced by another.
    pub fn find(overrides: &Overrides) -> Result<Self, AssetError> {
        Ok(Search::new(overrides)?.assets()?)
    }

    /// What [`provide`](Self::provide) would give, and whether it would have to make it. Makes nothing.
    ///
    /// # Errors
    ///
    /// As [`provide`](Self::provide), but for what goes wrong in making.
    pub fn look(overrides: &Overrides) -> Result<Provision, AssetError> {
        Search::new(overrides)?.look().map(|found| match found {
            host::Found::Made(assets) => Provision::Ready(assets),
            host::Found::Kernel(kernel) => Provision::Makeable {
                kernel: kernel.path().to_owned(),
            },
        })
    }

    /// As [`find`](Self::find); where the guest directory has no kernel that does and none was chosen, takes one of
    /// an unpacked package or of `/boot`, unpacks it, makes its initramfs with the agent, and keeps both. That takes
    /// seconds, once.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find), or when no kernel of this machine can run a sandbox, or when there is no agent.
    pub fn provide(overrides: &Overrides) -> Result<Self, AssetError> {
        Search::new(overrides)?.provide()
    }
}

/// Where guest files are kept: `guest` in the [cache directory](cache_directory). It need not exist yet.
///
/// # Errors
///
/// When there is no cache directory.
pub fn directory() -> Result<PathBuf, CacheDirectoryError> {
    Ok(cache_directory()?.join("guest"))
}

/// Puts a file into `directory`, which is made, under `name`, with the permission bits `mode`, and returns its
/// path. Whoever looks at that path meanwhile sees the old file or the new one, never a part.
///
/// # Errors
///
/// When the name is not a plain file name or the file cannot be written.
pub fn install(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, AssetError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(AssetError::Name {
            name: name.to_owned(),
        });
    }
    let path = directory.join(name);
    match replace(directory, &path, bytes, mode) {
        Ok(()) => Ok(path),
        Err(source) => Err(AssetError::Install { path, source }),
    }
}

fn replace(directory: &Path, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".install-")
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_replaces_and_leaves_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("new/guest");
        install(&directory, "kata-agent", b"old", 0o644).unwrap();
        let path = install(&directory, "kata-agent", b"new", 0o755).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o755
        );
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        for name in ["", ".", "..", "a/b", "/etc/x", "a\0"] {
            let installed = install(Path::new("/nonexistent"), name, b"", 0o600);
            assert!(matches!(installed, Err(AssetError::Name { .. })), "{name:?}");
        }
    }
}
