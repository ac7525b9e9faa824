//! Why something of the cache could not be made: a program failed, or a file.
//!
//! Every room that makes something has these two reasons beside its own. It must not know what is made.

use std::io;
use std::path::{Path, PathBuf};

use crate::process::ProcessError;

/// A step of making something failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakingError {
    /// A program.
    #[error("cannot {what}")]
    Program {
        /// What it was to do.
        what: &'static str,
        /// What it said.
        #[source]
        source: ProcessError,
    },
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

/// Says what a program was to do.
pub(crate) fn program(what: &'static str) -> impl FnOnce(ProcessError) -> MakingError {
    move |source| MakingError::Program { what, source }
}

/// Says what was done with which file.
pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MakingError {
    let path = path.to_owned();
    move |source| MakingError::File { what, path, source }
}
