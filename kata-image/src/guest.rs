//! The guest assets: the files that every sandbox boots, whatever container it runs. Finds them and puts them
//! where they are found; what is in them is up to who made them.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{CacheDirectoryError, cache_directory};

/// The files that a sandbox in a virtual machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// An uncompressed kernel (ELF).
    pub kernel: PathBuf,
    /// An uncompressed cpio archive with the agent and the modules that the kernel needs.
    pub initramfs: PathBuf,
    /// The agent as a static executable, for what runs without a virtual machine.
    pub agent: PathBuf,
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

    /// Its name in the [guest directory](directory), and so for [`install`].
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

    /// Finds this file alone: the override, else its environment variable, else the guest directory. What was
    /// chosen by the first two is not silently replaced by another.
    ///
    /// # Errors
    ///
    /// When no regular file is there.
    pub fn find(self, overrides: &Overrides) -> Result<PathBuf, AssetError> {
        let variable = env::var_os(self.variable())
            .filter(|value| !value.is_empty())
            .map(PathBuf::from);
        self.find_in(overrides, variable, || Ok(directory()?))
    }

    fn find_in(
        self,
        overrides: &Overrides,
        variable: Option<PathBuf>,
        directory: impl FnOnce() -> Result<PathBuf, AssetError>,
    ) -> Result<PathBuf, AssetError> {
        let chosen = self.override_in(overrides).map(Path::to_path_buf).or(variable);
        let path = match chosen {
            Some(path) => path,
            None => directory()?.join(self.file_name()),
        };
        if path.is_file() {
            Ok(path)
        } else {
            Err(AssetError::Missing {
                asset: self,
                looked_in: vec![path],
            })
        }
    }
}

impl Assets {
    /// Finds all of them, each as [`Asset::find`] does.
    ///
    /// # Errors
    ///
    /// [`AssetError::Missing`] for the first that is not there.
    pub fn find(overrides: &Overrides) -> Result<Self, AssetError> {
        Ok(Self {
            kernel: Asset::Kernel.find(overrides)?,
            initramfs: Asset::Initramfs.find(overrides)?,
            agent: Asset::Agent.find(overrides)?,
        })
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

/// Puts a file into the guest directory under `name`, with the permission bits `mode`, and returns its path.
/// Whoever looks at that path meanwhile sees the old file or the new one, never a part.
///
/// # Errors
///
/// When the name is not a plain file name or the file cannot be written.
pub fn install(name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, AssetError> {
    install_in(&directory()?, name, bytes, mode)
}

fn install_in(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, AssetError> {
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
    fn an_override_beats_the_variable_beats_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["chosen", "from-environment", "vmlinux"] {
            std::fs::write(path(name), name).unwrap();
        }
        let overrides = Overrides {
            kernel: Some(path("chosen")),
            ..Overrides::default()
        };
        let find = |overrides: &Overrides, variable| {
            Asset::Kernel
                .find_in(overrides, variable, || Ok(directory.path().to_path_buf()))
                .unwrap()
        };
        assert_eq!(find(&overrides, Some(path("from-environment"))), path("chosen"));
        assert_eq!(
            find(&Overrides::default(), Some(path("from-environment"))),
            path("from-environment")
        );
        assert_eq!(find(&Overrides::default(), None), path("vmlinux"));
    }

    #[test]
    fn a_missing_file_says_where_it_should_be_and_what_to_do() {
        let none = Overrides::default();
        let error = Asset::Agent
            .find_in(&none, None, || Ok("/nonexistent".into()))
            .unwrap_err();
        let expected = "the guest agent was not found in /nonexistent/kata-agent; run `cargo xtask quickstart` \
                        (or `cargo xtask guest`), or set KATA_AGENT to its path";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_wrong_choice_is_not_replaced_by_another() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kata-agent"), "").unwrap();
        let chosen = Some(PathBuf::from("/nonexistent/agent"));
        let found = Asset::Agent.find_in(&Overrides::default(), chosen, || {
            Ok(directory.path().to_path_buf())
        });
        assert!(matches!(found, Err(AssetError::Missing { looked_in, .. }) if looked_in.len() == 1));
    }

    #[test]
    fn installing_replaces_and_leaves_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("new/guest");
        install_in(&directory, "kata-agent", b"old", 0o644).unwrap();
        let path = install_in(&directory, "kata-agent", b"new", 0o755).unwrap();
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
            let installed = install_in(Path::new("/nonexistent"), name, b"", 0o600);
            assert!(matches!(installed, Err(AssetError::Name { .. })), "{name:?}");
        }
    }
}
