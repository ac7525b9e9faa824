//! Where the checkout is and where cargo puts what it builds.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use crate::process::{self, ProcessError};

/// The checkout.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Workspace {
    /// The directory of the workspace's manifest.
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    /// Where cargo builds, as `CARGO_TARGET_DIR` or its configuration says.
    #[serde(rename = "target_directory")]
    pub(crate) target: PathBuf,
}

/// Why the checkout was not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    /// cargo did not tell.
    #[error("cannot ask cargo about the workspace")]
    Cargo(#[from] ProcessError),
    /// cargo told something else.
    #[error("cannot understand `cargo metadata`")]
    Metadata(#[from] serde_json::Error),
}

impl Workspace {
    /// The workspace that this program belongs to.
    ///
    /// # Errors
    /// When cargo cannot read its manifest.
    pub(crate) fn find() -> Result<Self, WorkspaceError> {
        let mut metadata = cargo();
        metadata.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
        // Set by `cargo run`, wherever in the tree it was called.
        if let Some(manifest) = std::env::var_os("CARGO_MANIFEST_DIR") {
            metadata.current_dir(manifest);
        }
        Ok(serde_json::from_str(&process::read(&mut metadata)?)?)
    }

    /// A cargo command that runs in the root.
    pub(crate) fn cargo(&self, words: &[&str]) -> Command {
        let mut command = cargo();
        command.args(words).current_dir(&self.root);
        command
    }
}

/// The cargo that runs this program.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
