//! Processes and containers in a sandbox that runs, by the library and by runc inside of the same guest.
//!
//! It provides an image with runc, the guest and a monitor; the package `benches` measures.

use std::process::Command;

use super::BenchError;
use crate::images;
use crate::process;
use crate::progress::Step;
use crate::setup::{self, Purpose, SetupError};
use crate::workspace::Workspace;

/// Measures, prints the figures, and writes the table.
pub(super) fn run(workspace: &Workspace) -> Result<(), BenchError> {
    let ready = setup::provide(workspace, Purpose::Run)?;
    let images = images::provide(&ready.rootfs).map_err(SetupError::from)?;
    let step = Step::start("benchmark");
    let build = ["build", "--release", "--package=benches", "--bin=exec"];
    process::run(&step, &mut workspace.cargo(&build)).map_err(BenchError::Build)?;
    step.done("");
    let mut measure = Command::new(workspace.target.join("release/exec"));
    measure.arg(&images).arg(workspace.root.join("docs/figures"));
    let status = measure.env("KATA_VMM", &ready.monitor).status()?;
    if !status.success() {
        return Err(BenchError::Failed(status));
    }
    Ok(())
}
