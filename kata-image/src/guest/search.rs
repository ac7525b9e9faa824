//! Which kernel and initramfs a guest boots: one order for whoever asks.
//!
//! ```text
//!  chosen by the caller ─► environment ─► guest directory: complete sets, then others ─► the machine's own kernels
//! ```
//!
//! What was chosen is taken or refused, never replaced. One that was not chosen is passed over when it cannot run a
//! sandbox, and told of if it was the last. It must not know how guest files are made.

use std::path::{Path, PathBuf};

use super::host::{self, Found, HostKernelError};
use super::{Asset, AssetError, Assets, Overrides, Set, checked, directory};
use crate::cache::CacheDirectoryError;
use crate::kernel::KernelError;

/// What was chosen, and where to look for what was not.
#[derive(Debug)]
pub(super) struct Search {
    chosen: Overrides,
    directory: PathBuf,
}

/// Why there is no kernel.
#[derive(Debug)]
pub(super) enum NoKernel {
    /// Nothing else may take its place.
    Final(AssetError),
    /// Nobody chose one, and the guest directory has none that does.
    Nowhere {
        looked_in: Vec<PathBuf>,
        /// What is wrong with those that are there, the best first.
        refused: Vec<KernelError>,
    },
}

impl From<AssetError> for NoKernel {
    fn from(error: AssetError) -> Self {
        Self::Final(error)
    }
}

impl From<NoKernel> for AssetError {
    fn from(none: NoKernel) -> Self {
        match none {
            NoKernel::Final(error) => error,
            NoKernel::Nowhere { looked_in, refused } => match refused.into_iter().next() {
                Some(error) => Self::Kernel(error),
                None => Self::Missing {
                    asset: Asset::Kernel,
                    looked_in,
                },
            },
        }
    }
}

/// The kernels of the guest directory, whether they are there or not, in the order in which they are taken: with an
/// initramfs first. Where the caller has one, none is better than another for that.
pub(crate) fn kernels(directory: &Path, has_initramfs: bool) -> Vec<PathBuf> {
    let mut sets: Vec<Assets> = Set::ALL.iter().map(|set| set.in_directory(directory)).collect();
    sets.sort_by_key(|set| !has_initramfs && !set.initramfs.is_file());
    sets.into_iter().map(|set| set.kernel).collect()
}

impl Search {
    pub(super) fn new(overrides: &Overrides) -> Result<Self, CacheDirectoryError> {
        let chosen = |asset: Asset| {
            let named = asset.override_in(overrides).map(Path::to_path_buf);
            named.or_else(|| asset.in_environment())
        };
        Ok(Self {
            chosen: Overrides {
                kernel: chosen(Asset::Kernel),
                initramfs: chosen(Asset::Initramfs),
                agent: chosen(Asset::Agent),
            },
            directory: directory()?,
        })
    }

    pub(super) fn assets(&self) -> Result<Assets, NoKernel> {
        let kernel = self.find_kernel()?;
        let initramfs = match &self.chosen.initramfs {
            Some(path) => existing(Asset::Initramfs, path.clone())?,
            None => beside(&kernel)?,
        };
        Ok(Assets { kernel, initramfs })
    }

    pub(super) fn kernel(&self) -> Result<PathBuf, AssetError> {
        Ok(self.find_kernel()?)
    }

    pub(super) fn look(&self) -> Result<Found, AssetError> {
        let (looked_in, refused) = match self.assets() {
            Ok(assets) => return Ok(Found::Made(assets)),
            // An initramfs of the caller's has the modules of one kernel, and nobody knows of which.
            Err(NoKernel::Nowhere { looked_in, refused }) if self.chosen.initramfs.is_none() => {
                (looked_in, refused)
            }
            Err(none) => return Err(none.into()),
        };
        self.of_host(refused).map_err(|source| AssetError::NoKernel {
            looked_in,
            source: Box::new(source),
        })
    }

    pub(super) fn provide(&self) -> Result<Assets, AssetError> {
        let kernel = match self.look()? {
            Found::Made(assets) => return Ok(assets),
            Found::Kernel(kernel) => kernel,
        };
        let made = self
            .agent()
            .map_err(|error| HostKernelError::Asset(Box::new(error)))
            .and_then(|agent| host::make(&self.directory, &kernel, &agent));
        made.map_err(|source| AssetError::NoKernel {
            looked_in: kernels(&self.directory, false),
            source: Box::new(source),
        })
    }

    fn of_host(&self, refused: Vec<KernelError>) -> Result<Found, HostKernelError> {
        let agent = self.agent().map_err(Box::new)?;
        host::find(&self.directory, &agent, refused)
    }

    fn find_kernel(&self) -> Result<PathBuf, NoKernel> {
        if let Some(path) = &self.chosen.kernel {
            let kernel = existing(Asset::Kernel, path.clone())?;
            checked::check(&self.directory, &kernel).map_err(AssetError::Kernel)?;
            return Ok(kernel);
        }
        let looked_in = kernels(&self.directory, self.chosen.initramfs.is_some());
        let mut refused = Vec::new();
        for kernel in looked_in.iter().filter(|kernel| kernel.is_file()) {
            match checked::check(&self.directory, kernel) {
                Ok(()) => return Ok(kernel.clone()),
                Err(error) => refused.push(error),
            }
        }
        Err(NoKernel::Nowhere { looked_in, refused })
    }

    pub(super) fn agent(&self) -> Result<PathBuf, AssetError> {
        let path = match &self.chosen.agent {
            Some(path) => path.clone(),
            None => self.directory.join(Asset::Agent.file_name()),
        };
        existing(Asset::Agent, path)
    }
}

fn existing(asset: Asset, path: PathBuf) -> Result<PathBuf, AssetError> {
    if path.is_file() {
        return Ok(path);
    }
    Err(AssetError::Missing {
        asset,
        looked_in: vec![path],
    })
}

fn beside(kernel: &Path) -> Result<PathBuf, AssetError> {
    let path = kernel.with_file_name(Asset::Initramfs.file_name());
    if path.is_file() {
        return Ok(path);
    }
    Err(AssetError::NoInitramfs {
        kernel: kernel.to_owned(),
        path,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernel::tests::vmlinux_of;

    /// A search below `root`, which has these files in its guest directory.
    fn search(root: &Path, files: &[&str]) -> Search {
        let directory = root.join("guest");
        for name in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vmlinux_of(&[])).unwrap();
        }
        Search {
            chosen: Overrides::default(),
            directory,
        }
    }

    const BOTH: [&str; 4] = [
        "distribution/vmlinux",
        "distribution/initramfs.cpio",
        "tailored/vmlinux",
        "tailored/initramfs.cpio",
    ];

    #[test]
    fn the_tailored_kernel_is_taken_where_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let with = |files: &[&str]| {
            let root = tempfile::tempdir_in(root.path()).unwrap().keep();
            let assets = search(&root, files).assets().unwrap();
            let names = [assets.kernel, assets.initramfs];
            names.map(|path| {
                path.strip_prefix(root.join("guest"))
                    .unwrap()
                    .display()
                    .to_string()
            })
        };
        assert_eq!(with(&BOTH), ["tailored/vmlinux", "tailored/initramfs.cpio"]);
        let distribution = ["distribution/vmlinux", "distribution/initramfs.cpio"];
        assert_eq!(with(&BOTH[..3]), distribution);
        assert_eq!(with(&BOTH[..2]), distribution);
    }

    #[test]
    fn a_kernel_that_cannot_run_a_sandbox_is_passed_over_and_told_of_if_it_was_the_last() {
        let root = tempfile::tempdir().unwrap();
        let search = search(root.path(), &BOTH);
        let [tailored, distribution] =
            ["tailored", "distribution"].map(|set| root.path().join("guest").join(set).join("vmlinux"));
        fs::write(&tailored, "garbage").unwrap();
        assert_eq!(search.assets().unwrap().kernel, distribution);
        fs::write(&distribution, vmlinux_of(&["EROFS_FS"])).unwrap();
        let error = AssetError::from(search.assets().unwrap_err());
        assert!(matches!(error, AssetError::Kernel(KernelError::Extract { path, .. }) if path == tailored));
    }

    #[test]
    fn a_chosen_kernel_is_refused_by_the_names_of_its_options() {
        let root = tempfile::tempdir().unwrap();
        let mut search = search(root.path(), &BOTH);
        let mine = root.path().join("guest/distribution/mine");
        fs::write(&mine, vmlinux_of(&["OVERLAY_FS"])).unwrap();
        search.chosen.kernel = Some(mine.clone());
        for error in [search.look().unwrap_err(), search.provide().unwrap_err()] {
            let expected = format!(
                "the kernel {} cannot run a sandbox: it lacks CONFIG_OVERLAY_FS",
                mine.display()
            );
            assert_eq!(error.to_string(), expected);
        }
        fs::write(&mine, vmlinux_of(&[])).unwrap();
        assert_eq!(search.provide().unwrap().kernel, mine);
    }

    #[test]
    fn an_initramfs_that_was_not_chosen_is_the_one_beside_the_kernel() {
        let root = tempfile::tempdir().unwrap();
        let mut search = search(root.path(), &BOTH);
        let place = root.path().join("guest/distribution");
        search.chosen.kernel = Some(place.join("vmlinux"));
        assert_eq!(search.assets().unwrap().initramfs, place.join("initramfs.cpio"));
        fs::write(root.path().join("alone"), vmlinux_of(&[])).unwrap();
        search.chosen.kernel = Some(root.path().join("alone"));
        let error = AssetError::from(search.assets().unwrap_err());
        let expected = format!(
            "there is no initramfs for the kernel {root}/alone: {root}/initramfs.cpio does not exist; run `cargo \
             xtask guest`, or set KATA_INITRAMFS to one that has this kernel's modules",
            root = root.path().display()
        );
        assert_eq!(error.to_string(), expected);
        search.chosen.initramfs = Some(place.join("initramfs.cpio"));
        assert_eq!(search.assets().unwrap().kernel, root.path().join("alone"));
    }

    #[test]
    fn a_missing_file_says_where_it_should_be_and_what_to_do() {
        let error = search(Path::new("/nonexistent"), &[]).agent().unwrap_err();
        let expected = "the guest agent was not found in /nonexistent/guest/kata-agent; run `cargo xtask \
                        quickstart` (or `cargo xtask guest`), or set KATA_AGENT to its path";
        assert_eq!(error.to_string(), expected);
        let error = AssetError::from(search(Path::new("/nonexistent"), &[]).assets().unwrap_err());
        assert!(matches!(error, AssetError::Missing { looked_in, .. } if looked_in.len() == 2));
    }

    #[test]
    fn a_wrong_choice_is_not_replaced_by_another() {
        let root = tempfile::tempdir().unwrap();
        let mut search = search(root.path(), &[&BOTH[..], &["kata-agent"]].concat());
        search.chosen.agent = Some(PathBuf::from("/nonexistent/agent"));
        search.chosen.kernel = Some(PathBuf::from("/nonexistent/kernel"));
        for found in [
            search.agent(),
            search.kernel(),
            search.provide().map(|assets| assets.kernel),
        ] {
            assert!(matches!(found, Err(AssetError::Missing { looked_in, .. }) if looked_in.len() == 1));
        }
    }
}
