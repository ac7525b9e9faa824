//! The root filesystem that examples and tests run: this machine's own distribution, minimal, as one tar
//! archive in the cache, made once by mmdebstrap.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::distribution::{Distribution, DistributionError};
use crate::partial::Partial;
use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::units::mib;

/// Why there is no root filesystem.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    /// Not a distribution that mmdebstrap makes.
    #[error("cannot make a root filesystem")]
    Distribution(#[from] DistributionError),
    /// mmdebstrap failed.
    #[error("cannot make a root filesystem of {suite}")]
    Program {
        /// The release.
        suite: String,
        /// What it said.
        #[source]
        source: ProcessError,
    },
    /// The cache could not be written.
    #[error("cannot {what} {}", path.display())]
    Cache {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
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
    let partial = Partial::new(directory, ".tar").map_err(failed("write into", directory))?;
    let mut command = process::command("mmdebstrap", ["--variant=minbase", "--format=tar", suite]);
    process::run(&step, command.arg(partial.path())).map_err(|source| RootfsError::Program {
        suite: suite.to_owned(),
        source,
    })?;
    let size = fs::metadata(partial.path())
        .map_err(failed("read", partial.path()))?
        .len();
    partial.complete(archive).map_err(failed("create", archive))?;
    step.done(mib(size));
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.to_owned();
    move |source| RootfsError::Cache { what, path, source }
}
