//! `cargo xtask quickstart`: from a fresh clone to a container in a VM of its own.

use std::process::{Command, ExitStatus, Stdio};

use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::setup::{self, Purpose, Ready, SetupError};
use crate::workspace::Workspace;

/// Why no container ran.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuickstartError {
    /// Something is missing.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The example does not build.
    #[error("cannot build the example")]
    Build(#[source] ProcessError),
    /// The example could not be started.
    #[error("cannot start the example")]
    Start(#[source] std::io::Error),
    /// The example failed.
    #[error("the example failed ({0})")]
    Failed(ExitStatus),
}

/// Sets everything up and runs the `hello` example.
///
/// # Errors
/// When something is missing and cannot be made, or the example fails.
pub(crate) fn run(workspace: &Workspace) -> Result<(), QuickstartError> {
    let ready = setup::provide(workspace, Purpose::Run)?;
    setup::install_monitor(&ready.monitor)?;
    let mut example = build_hello(workspace, &ready)?;
    eprintln!("\n$ {}\n", process::line(&example));
    let status = example
        .stdin(Stdio::null())
        .status()
        .map_err(QuickstartError::Start)?;
    if status.success() {
        Ok(())
    } else {
        Err(QuickstartError::Failed(status))
    }
}

fn build_hello(workspace: &Workspace, ready: &Ready) -> Result<Command, QuickstartError> {
    let step = Step::start("example");
    let words = ["build", "--release", "--package=examples", "--example=hello"];
    process::run(&step, &mut workspace.cargo(&words)).map_err(QuickstartError::Build)?;
    step.done("");
    let mut command = Command::new(workspace.target.join("release/examples/hello"));
    command.arg(&ready.rootfs).env("KATA_VMM", &ready.monitor);
    Ok(command)
}
