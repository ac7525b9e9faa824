//! The root filesystem that examples and tests run: this machine's own distribution, minimal, as one tar
//! archive in the cache, made once by mmdebstrap.

use std::fs;
use std::path::{Path, PathBuf};

use crate::distribution::{Distribution, DistributionError};
use crate::making::{MakingError, file, program};
use crate::partial::Partial;
use crate::process;
use crate::progress::Step;
use crate::units::mib;

/// Why there is no root filesystem.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    /// Not a distribution that mmdebstrap makes.
    #[error("cannot make a root filesystem")]
    Distribution(#[from] DistributionError),
    /// A program or a file of the cache failed.
    #[error(transparent)]
    Making(#[from] MakingError),
}

/// The archive in the cache; made when it is not there.
///
/// # Errors
/// When it is not in the cache and cannot be made.
pub(crate) fn provide(cache: &Path) -> Result<PathBuf, RootfsError> {
    let Distribution { family, codename } = Distribution::detect()?;
    let directory = cache.join("rootfs");
    let archive = directory.join(format!("{}-{codename}.tar", family.name()));
    if !archive.is_file() {
        make(&codename, &directory, &archive)?;
    }
    Ok(archive)
}

fn make(suite: &str, directory: &Path, archive: &Path) -> Result<(), RootfsError> {
    let step = Step::start(format!("root filesystem of {suite} (once, about a minute)"));
    let partial = Partial::new(directory, ".tar").map_err(file("write into", directory))?;
    let mut command = process::command("mmdebstrap", ["--variant=minbase", "--format=tar", suite]);
    process::run(&step, command.arg(partial.path()))
        .map_err(program("make a root filesystem with mmdebstrap"))?;
    let size = fs::metadata(partial.path())
        .map_err(file("read", partial.path()))?
        .len();
    partial.complete(archive).map_err(file("create", archive))?;
    step.done(mib(size));
    Ok(())
}
