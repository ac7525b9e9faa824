//! Where kernels are looked for, and which of them is taken.
//!
//! ```text
//!  chosen by the caller ─► KATA_KERNEL ─► guest directory: tailored, distribution, complete ones first
//!                       ─► packages unpacked in the cache, newest first ─► /boot, newest first
//! ```
//!
//! What was chosen is taken or refused, never replaced. It must not know how a kernel is made.

use std::fs;
use std::path::{Path, PathBuf};

use super::inspect::{Kernel, KernelError};
use crate::cache::{CacheDirectoryError, cache_directory};
use crate::guest::{self, Asset};

/// Why no kernel was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindKernelError {
    /// The one that was chosen does not do.
    #[error(transparent)]
    Chosen(#[from] KernelError),
    /// There is none that can run a sandbox.
    #[error("no kernel on this machine can run a sandbox: {}", refusals(.refused, .looked_in))]
    None {
        /// The directories that were looked into.
        looked_in: Vec<PathBuf>,
        /// What is wrong with each of the kernels that are there.
        refused: Vec<KernelError>,
    },
    /// There is no cache directory to look into.
    #[error("no place for guest files")]
    CacheDirectory(#[from] CacheDirectoryError),
}

/// Every refusal with its causes: an error has one source, and these are several.
fn refusals(refused: &[KernelError], looked_in: &[PathBuf]) -> String {
    if refused.is_empty() {
        let places: Vec<String> = looked_in.iter().map(|path| path.display().to_string()).collect();
        return format!("there is none in {}", places.join(", "));
    }
    let reasons: Vec<String> = refused.iter().map(|error| chain(error)).collect();
    reasons.join("; ")
}

/// The directories with kernels that nobody chose.
#[derive(Debug, Clone)]
struct Places {
    /// With a directory for each set of guest files.
    guest: PathBuf,
    /// With a directory for each unpacked package.
    packages: PathBuf,
    /// `/boot`.
    boot: PathBuf,
}

impl Places {
    fn of_this_machine() -> Result<Self, CacheDirectoryError> {
        let cache = cache_directory()?;
        Ok(Self {
            guest: guest::directory()?,
            packages: cache.join("kernel"),
            boot: PathBuf::from("/boot"),
        })
    }

    /// All files that may be kernels, the best first.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut all = self.of_guests();
        all.extend(self.of_the_host());
        all
    }

    /// Those that are ready to boot.
    fn of_guests(&self) -> Vec<PathBuf> {
        let mut kernels = guest::kernels(&self.guest, false);
        kernels.retain(|path| path.is_file());
        kernels
    }

    /// Those that have to be unpacked first.
    fn of_the_host(&self) -> Vec<PathBuf> {
        let unpacked = entries(&self.packages);
        let mut packages: Vec<PathBuf> = unpacked.iter().flat_map(|at| images(&at.join("boot"))).collect();
        packages.sort_by_key(|path| std::cmp::Reverse(version_key(path)));
        packages.extend(images(&self.boot));
        packages
    }

    fn none(&self, refused: Vec<KernelError>) -> FindKernelError {
        FindKernelError::None {
            looked_in: vec![self.guest.clone(), self.packages.clone(), self.boot.clone()],
            refused,
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The kernels in a directory `boot`, newest first.
fn images(directory: &Path) -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = entries(directory)
        .into_iter()
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.starts_with("vmlinuz-") && path.is_file()
        })
        .collect();
    images.sort_by_key(|path| std::cmp::Reverse(version_key(path)));
    images
}

/// Orders file names by their numbers: 6.12.9 comes before 6.12.117.
fn version_key(path: &Path) -> Vec<u64> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

impl Kernel {
    /// Finds a kernel that can run a sandbox: the one at `chosen`, else the one that `KATA_KERNEL` names, else
    /// the best of the guest directory, of distribution packages unpacked in the cache, and of `/boot`. That is
    /// the order of [`Assets::provide`](crate::guest::Assets::provide) too. One of a package or of `/boot` is taken
    /// only if its configuration is known.
    ///
    /// # Errors
    ///
    /// When the chosen kernel lacks something, or no other does not; both say what is missing.
    pub fn find(chosen: Option<&Path>) -> Result<Self, FindKernelError> {
        let variable = Asset::Kernel.in_environment();
        let places = Places::of_this_machine()?;
        find(chosen.map(Path::to_path_buf).or(variable), &places)
    }
}

/// The kernels that have not been made ready for guests: those of unpacked packages and of `/boot`.
#[derive(Debug)]
pub(crate) struct HostKernels(Places);

impl HostKernels {
    pub(crate) fn of_this_machine() -> Result<Self, CacheDirectoryError> {
        Places::of_this_machine().map(Self)
    }

    /// All files that may be one, the best first.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.0.of_the_host()
    }

    /// One of them, if it can run a sandbox.
    pub(crate) fn usable(&self, path: &Path) -> Result<Kernel, KernelError> {
        usable(path, &self.0)
    }

    /// None is left.
    pub(crate) fn none(&self, refused: Vec<KernelError>) -> FindKernelError {
        self.0.none(refused)
    }
}

fn find(chosen: Option<PathBuf>, places: &Places) -> Result<Kernel, FindKernelError> {
    if let Some(path) = chosen {
        let kernel = Kernel::inspect_with(&path, &places.boot)?;
        kernel.check()?;
        return Ok(kernel);
    }
    first_usable(places.candidates(), places)
}

fn first_usable(candidates: Vec<PathBuf>, places: &Places) -> Result<Kernel, FindKernelError> {
    let mut refused = Vec::new();
    for path in candidates {
        match usable(&path, places) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => refused.push(error),
        }
    }
    Err(places.none(refused))
}

/// The kernel, or what is wrong with it in one line.
fn usable(path: &Path, places: &Places) -> Result<Kernel, KernelError> {
    let kernel = Kernel::inspect_with(path, &places.boot)?;
    // Whoever put one into the guest directory chose it.
    if !kernel.is_known() && !path.starts_with(&places.guest) {
        return Err(KernelError::Unknown {
            path: path.to_path_buf(),
        });
    }
    kernel.check()?;
    Ok(kernel)
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::super::configuration::tests::embed;
    use super::super::inspect::tests::{config, vmlinux};
    use super::*;

    fn places(root: &Path) -> Places {
        Places {
            guest: root.join("guest"),
            packages: root.join("kernel"),
            boot: root.join("boot"),
        }
    }

    fn put(path: &Path, without: &[&str]) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vmlinux(true, &embed(&config("y", without)))).unwrap();
        path.to_owned()
    }

    #[test]
    fn places_come_in_their_order_and_the_newest_first() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let mut worst_first = vec![put(&places.boot.join("vmlinuz-6.9"), &[])];
        worst_first.push(put(&places.boot.join("vmlinuz-6.10"), &[]));
        for version in ["6.1.9", "6.1.12"] {
            let package = places.packages.join(version).join("boot");
            worst_first.push(put(&package.join(format!("vmlinuz-{version}")), &[]));
        }
        worst_first.push(put(&places.guest.join("distribution/vmlinux"), &[]));
        worst_first.push(put(&places.guest.join("tailored/vmlinux"), &[]));
        while let Some(best) = worst_first.pop() {
            assert_eq!(find(None, &places).unwrap().path(), best);
            fs::remove_file(best).unwrap();
        }
    }

    #[test]
    fn one_that_cannot_is_passed_over_and_told_of_if_it_was_the_last() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        put(&places.boot.join("vmlinuz-6.10"), &["EROFS_FS"]);
        let other = put(&places.boot.join("vmlinuz-6.9"), &[]);
        assert_eq!(find(None, &places).unwrap().path(), other);
        fs::write(&other, vmlinux(true, b"")).unwrap();
        let error = find(None, &places).unwrap_err().to_string();
        assert!(error.starts_with("no kernel on this machine can run a sandbox: the kernel "));
        assert!(
            error.contains(
                "vmlinuz-6.10 cannot run a sandbox: it lacks CONFIG_EROFS_FS; the configuration of "
            )
        );
        assert!(error.ends_with("vmlinuz-6.9 is unknown"), "{error}");
    }

    #[test]
    fn a_chosen_one_is_taken_or_refused_but_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        put(&places.guest.join("tailored/vmlinux"), &[]);
        let chosen = put(&root.path().join("mine"), &["OVERLAY_FS"]);
        let error = find(Some(chosen.clone()), &places).unwrap_err();
        assert!(
            error.to_string().ends_with("it lacks CONFIG_OVERLAY_FS"),
            "{error}"
        );
        fs::write(&chosen, vmlinux(true, b"")).unwrap();
        assert_eq!(find(Some(chosen.clone()), &places).unwrap().path(), chosen);
        assert!(find(Some("/nonexistent".into()), &places).is_err());
    }

    #[test]
    fn a_machine_without_kernels_says_where_it_looked() {
        let root = tempfile::tempdir().unwrap();
        let error = find(None, &places(root.path())).unwrap_err().to_string();
        assert!(
            error.contains("there is none in ") && error.contains("/boot"),
            "{error}"
        );
    }
}
