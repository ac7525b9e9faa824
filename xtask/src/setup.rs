//! Everything that must be there before a sandbox can run from this checkout.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_image::guest::{Asset, Set};

use crate::guest::{self, GuestError};
use crate::images::{self, ImagesError};
use crate::kernel::{self, Kernel, TailorError, Variant};
use crate::packages::{self, PackageError};
use crate::partial::Partial;
use crate::process::{self, ProcessError};
use crate::progress::{self, Step};
use crate::rootfs::{self, RootfsError};
use crate::workspace::Workspace;

/// What was set up.
#[derive(Debug)]
pub(crate) struct Ready {
    /// A root filesystem, as a tar archive.
    pub(crate) rootfs: PathBuf,
    /// Images with real software, as an OCI layout; for tests alone.
    pub(crate) images: Option<PathBuf>,
    /// The monitor's executable.
    pub(crate) monitor: PathBuf,
    /// The distribution's kernel.
    pub(crate) vmlinux: PathBuf,
    /// The tailored kernel, where it was built.
    pub(crate) tailored: Option<PathBuf>,
    /// The package that the distribution's kernel comes from.
    pub(crate) kernel: Kernel,
}

/// For what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To run programs: optimized, on the best kernel that is there.
    Run,
    /// To test: with its assertions, the tools that tests ask, and the tailored kernel.
    Test,
}

/// Why something is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A package.
    #[error(transparent)]
    Packages(#[from] PackageError),
    /// The guest's files.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The tailored kernel.
    #[error(transparent)]
    Tailored(#[from] TailorError),
    /// The root filesystem.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The images.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The monitor.
    #[error("cannot build the monitor")]
    Monitor(#[source] ProcessError),
    /// The monitor could not be put where embedders find it.
    #[error("cannot install the monitor as {}", path.display())]
    InstallMonitor {
        /// Where it was to be.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// No place for what is made.
    #[error(transparent)]
    Cache(#[from] kata_image::CacheDirectoryError),
}

/// Makes whatever is missing.
///
/// # Errors
/// When something cannot be made; the error says what to do.
pub(crate) fn provide(workspace: &Workspace, purpose: Purpose) -> Result<Ready, SetupError> {
    match purpose {
        Purpose::Run => packages::provide_for_running()?,
        Purpose::Test => packages::provide_for_testing()?,
    }
    let kernel = guest::make(workspace)?;
    if purpose == Purpose::Test {
        tailor(workspace, Variant::Default)?;
    }
    let rootfs = rootfs::provide(&kata_image::cache_directory()?)?;
    let images = match purpose {
        Purpose::Run => None,
        Purpose::Test => Some(images::provide(&rootfs)?),
    };
    let monitor = build_monitor(workspace, purpose).map_err(SetupError::Monitor)?;
    Ok(Ready {
        rootfs,
        images,
        monitor,
        vmlinux: Set::Distribution.directory()?.join(Asset::Kernel.file_name()),
        tailored: guest::tailored_kernel()?,
        kernel,
    })
}

/// Builds the tailored kernel unless it is in the cache, and installs it. Guests boot the default variant from then on.
///
/// # Errors
/// When it cannot be built; the error says what to do.
pub(crate) fn provide_tailored_kernel(workspace: &Workspace, variant: Variant) -> Result<(), SetupError> {
    packages::provide_for_kernel()?;
    let (built, installed) = tailor(workspace, variant)?;
    let now = match variant {
        Variant::Default => "guests boot the tailored kernel now".to_owned(),
        _ => format!("KATA_KERNEL={} boots it", installed.display()),
    };
    progress::note(format!(
        "{now}; what decodes its traces is {}",
        built.join("vmlinux.unstripped").display()
    ));
    Ok(())
}

/// Builds a kernel that is there once more, and compares.
///
/// # Errors
/// When it cannot be built, or is another.
pub(crate) fn reproduce_kernel(variant: Variant) -> Result<(), SetupError> {
    kernel::reproduce(&kata_image::cache_directory()?, variant)?;
    progress::note(format!(
        "a second build of the {} kernel has the same bytes",
        variant.name()
    ));
    Ok(())
}

/// The directory that the kernel was built into, and the file that guests boot.
fn tailor(workspace: &Workspace, variant: Variant) -> Result<(PathBuf, PathBuf), SetupError> {
    let tailored = kernel::tailor(&kata_image::cache_directory()?, variant)?;
    let installed = guest::install_tailored(workspace, &tailored)?;
    Ok((tailored.directory, installed))
}

fn build_monitor(workspace: &Workspace, purpose: Purpose) -> Result<PathBuf, ProcessError> {
    let (profile, directory) = match purpose {
        Purpose::Run => ("release", "release"),
        Purpose::Test => ("dev", "debug"),
    };
    let step = Step::start("monitor");
    let words = ["build", "--package=kata-vmm", "--bins", "--profile", profile];
    process::run(&step, &mut workspace.cargo(&words))?;
    step.done("");
    Ok(workspace.target.join(directory).join("kata-vmm"))
}

/// Puts the monitor where the SDK finds it for any program of this user; a newer build replaces it at once.
///
/// # Errors
/// When the cache cannot be written.
pub(crate) fn install_monitor(monitor: &Path) -> Result<PathBuf, SetupError> {
    let directory = kata_image::cache_directory()?.join("bin");
    let path = directory.join("kata-vmm");
    match replace(monitor, &directory, &path) {
        Ok(()) => Ok(path),
        Err(source) => Err(SetupError::InstallMonitor { path, source }),
    }
}

fn replace(monitor: &Path, directory: &Path, path: &Path) -> io::Result<()> {
    let partial = Partial::new(directory, "")?;
    // fs::copy keeps the permissions.
    fs::copy(monitor, partial.path())?;
    partial.complete(path)
}
