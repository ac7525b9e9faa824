//! A distribution's kernel package, unpacked into the user's cache and never installed.
//!
//! ```text
//!  <cache>/kernel/<version>/boot/vmlinuz-<version>
//!                          /lib/modules/<version>/
//! ```
//!
//! What is in the cache is used as it is: a newer kernel comes when the directory is deleted.
//! It knows package names and directories. It must not know what a guest does with a kernel.

use std::fs;
use std::path::{Path, PathBuf};

use super::version_key;
use crate::distribution::{Distribution, DistributionError, Family};
use crate::making::{MakingError, file, program};
use crate::packages::Apt;
use crate::partial::Partial;
use crate::process;
use crate::progress::Step;

/// A kernel package in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `uname -r` in the guest.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The tree of modules with its `modules.dep`.
    pub(crate) modules: PathBuf,
    /// Its configuration, where the package has it.
    pub(crate) config: Option<PathBuf>,
}

/// Why there is no guest kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Kernels are downloaded for x86_64 only.
    #[error("no guest kernel for {architecture}: only x86_64 machines are supported")]
    Architecture {
        /// This machine's.
        architecture: &'static str,
    },
    /// Not a distribution whose packages are known.
    #[error("cannot download a guest kernel")]
    Distribution(#[from] DistributionError),
    /// The package lists do not know a kernel, and cannot be fetched without root.
    #[error(
        "apt's lists know no guest kernel package ({wanted}); run\n\n    sudo apt-get update\n\nand then this again"
    )]
    NotListed {
        /// What was looked for.
        wanted: &'static str,
    },
    /// A program or a file of the cache failed.
    #[error(transparent)]
    Making(#[from] MakingError),
    /// The package is not what it is expected to be.
    #[error("the packages {packages} hold no kernel with modules")]
    Contents {
        /// Their names.
        packages: String,
    },
}

/// The newest kernel in the cache; downloads one when there is none.
///
/// # Errors
/// When the cache holds none and none can be downloaded.
pub(crate) fn provide(cache: &Path) -> Result<Kernel, KernelError> {
    let directory = cache.join("kernel");
    match newest_cached(&directory) {
        Some(kernel) => Ok(kernel),
        None => download(&directory),
    }
}

/// The newest complete kernel in a directory of unpacked packages.
fn newest_cached(directory: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| kernel_in(&entry.path()))
        .max_by_key(|kernel| version_key(&kernel.version))
}

/// The kernel that packages unpacked to, if it is complete.
fn kernel_in(unpacked: &Path) -> Option<Kernel> {
    let image = fs::read_dir(unpacked.join("boot"))
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| file_name(path).starts_with("vmlinuz-"))?;
    let version = file_name(&image).strip_prefix("vmlinuz-")?.to_owned();
    // Packages of a merged-/usr distribution name the directory that /lib points to.
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|parent| unpacked.join(parent).join(&version))
        .into_iter()
        .find(|path| path.is_dir())?;
    let config = unpacked.join("boot").join(format!("config-{version}"));
    Some(Kernel {
        version,
        image,
        modules,
        config: config.is_file().then_some(config),
    })
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn download(directory: &Path) -> Result<Kernel, KernelError> {
    if !cfg!(target_arch = "x86_64") {
        return Err(KernelError::Architecture {
            architecture: std::env::consts::ARCH,
        });
    }
    let step = Step::start("guest kernel");
    let packages = listed_packages(&step, Distribution::detect()?.family)?;
    let partial = Partial::new(directory, "").map_err(file("write into", directory))?;
    unpack_into(&step, partial.path(), &packages)?;
    let kernel = adopt(directory, partial, &packages)?;
    step.done(&kernel.version);
    Ok(kernel)
}

/// The packages of the newest kernel that apt's lists know.
fn listed_packages(step: &Step, family: Family) -> Result<Vec<String>, KernelError> {
    Apt::update_once(step);
    let packages = packages_of(family)?;
    if packages.is_empty() {
        let wanted = match family {
            Family::Debian => "linux-image-*-cloud-amd64",
            Family::Ubuntu => "linux-image-virtual",
        };
        return Err(KernelError::NotListed { wanted });
    }
    Ok(packages)
}

fn packages_of(family: Family) -> Result<Vec<String>, KernelError> {
    match family {
        Family::Debian => debian_packages(),
        Family::Ubuntu => Ok(ubuntu_packages()),
    }
}

fn debian_packages() -> Result<Vec<String>, KernelError> {
    let listing = process::read(&mut process::command(
        "apt-cache",
        ["search", "--names-only", "^linux-image-.*-cloud-amd64$"],
    ))
    .map_err(program("search apt's lists"))?;
    Ok(newest_cloud_kernel(&listing)
        .map(str::to_owned)
        .into_iter()
        .collect())
}

/// The newest kernel of `apt-cache search`'s lines; meta packages, which name no exact version, are not kernels.
fn newest_cloud_kernel(listing: &str) -> Option<&str> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((name, name.strip_prefix("linux-image-")?)))
        .filter(|(_, version)| is_exact(version) && !version.contains("rc"))
        .max_by_key(|(_, version)| version_key(version))
        .map(|(name, _)| name)
}

/// Whether a version has three components, as `6.12.117+deb12` has and the meta package's `6.12` has not.
fn is_exact(version: &str) -> bool {
    let release = version.split(['+', '-']).next().unwrap_or_default();
    release
        .split('.')
        .filter(|part| part.parse::<u64>().is_ok())
        .count()
        >= 3
}

fn ubuntu_packages() -> Vec<String> {
    // An unknown package is an error of apt-cache, and means that the lists must be fetched.
    let depends = process::read(&mut process::command(
        "apt-cache",
        ["depends", "linux-image-virtual"],
    ))
    .unwrap_or_default();
    ubuntu_image_and_modules(&depends)
}

/// The image of `apt-cache depends linux-image-virtual` and the modules that go with it.
fn ubuntu_image_and_modules(depends: &str) -> Vec<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find_map(|name| Some((name, name.strip_prefix("linux-image-")?)))
        .map(|(image, version)| vec![image.to_owned(), format!("linux-modules-{version}")])
        .unwrap_or_default()
}

fn unpack_into(step: &Step, partial: &Path, packages: &[String]) -> Result<(), KernelError> {
    fs::create_dir_all(partial).map_err(file("create", partial))?;
    let mut download = process::command("apt-get", ["download"]);
    process::run(step, download.args(packages).current_dir(partial))
        .map_err(program("download the guest kernel's packages"))?;
    for entry in fs::read_dir(partial).map_err(file("read", partial))? {
        let package = entry.map_err(file("read", partial))?.path();
        if package.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let mut unpack = process::command("dpkg-deb", ["-x"]);
        process::run(step, unpack.arg(&package).arg(partial))
            .map_err(program("unpack a package of the guest kernel"))?;
        fs::remove_file(&package).map_err(file("remove", &package))?;
    }
    Ok(())
}

/// Gives an unpacked kernel its name, at once, so that a kernel in the cache is a complete one.
fn adopt(directory: &Path, partial: Partial, packages: &[String]) -> Result<Kernel, KernelError> {
    let contents = || KernelError::Contents {
        packages: packages.join(" "),
    };
    let found = kernel_in(partial.path()).ok_or_else(contents)?;
    let target = directory.join(&found.version);
    if !target.exists() {
        partial.complete(&target).map_err(file("create", &target))?;
    }
    kernel_in(&target).ok_or_else(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_exact_version_is_taken() {
        let listing = "linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 (signed)\n\
                       linux-image-cloud-amd64 - meta\n\
                       linux-image-6.12-cloud-amd64 - meta\n\
                       linux-image-6.12.9+deb12-cloud-amd64 - Linux 6.12\n\
                       linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12\n\
                       linux-image-6.13~rc2-cloud-amd64 - candidate\n";
        assert_eq!(
            newest_cloud_kernel(listing),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(newest_cloud_kernel("linux-image-cloud-amd64 - meta\n"), None);
    }

    #[test]
    fn ubuntus_meta_package_leads_to_image_and_modules() {
        let depends = "linux-image-virtual\n  Depends: linux-image-6.8.0-31-generic\n";
        assert_eq!(
            ubuntu_image_and_modules(depends),
            ["linux-image-6.8.0-31-generic", "linux-modules-6.8.0-31-generic"]
        );
        assert!(ubuntu_image_and_modules("").is_empty());
    }

    fn unpacked(directory: &Path, version: &str, modules: &str) {
        let at = directory.join(version);
        fs::create_dir_all(at.join("boot")).unwrap();
        fs::write(at.join("boot").join(format!("vmlinuz-{version}")), "").unwrap();
        fs::create_dir_all(at.join(modules).join(version)).unwrap();
    }

    #[test]
    fn the_newest_complete_kernel_of_the_cache_is_used() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(newest_cached(directory.path()), None);
        unpacked(directory.path(), "6.12.9", "lib/modules");
        unpacked(directory.path(), "6.12.117", "usr/lib/modules");
        fs::create_dir_all(directory.path().join("6.99.0/boot")).unwrap();
        unpacked(directory.path(), ".partial-1", "lib/modules");
        let kernel = newest_cached(directory.path()).unwrap();
        assert_eq!(kernel.version, "6.12.117");
        assert!(kernel.modules.ends_with("6.12.117/usr/lib/modules/6.12.117"));
    }

    #[test]
    fn a_package_without_a_kernel_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let partial = Partial::new(directory.path(), "").unwrap();
        fs::create_dir(partial.path()).unwrap();
        let error = adopt(directory.path(), partial, &["linux-image-x".into()]).unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(
            error.to_string(),
            "the packages linux-image-x hold no kernel with modules"
        );
    }
}
