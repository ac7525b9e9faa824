//! From a reference to what a machine can boot, by our store and by skopeo, umoci and mkfs.erofs.
//!
//! It provides the programs, the files that the image is made of and a monitor; the package `benches` measures.

use std::process::Command;

use super::BenchError;
use crate::images;
use crate::packages;
use crate::process;
use crate::progress::Step;
use crate::setup::{self, Purpose, SetupError};
use crate::workspace::Workspace;

/// Measures, prints the figures, and writes table and plot.
pub(super) fn run(workspace: &Workspace) -> Result<(), BenchError> {
    // The pipeline's programs, and a registry.
    packages::provide_for_testing().map_err(SetupError::from)?;
    let ready = setup::provide(workspace, Purpose::Run)?;
    let images = images::provide(&ready.rootfs).map_err(SetupError::from)?;
    let step = Step::start("benchmark");
    let build = ["build", "--release", "--package=benches", "--bin=image"];
    process::run(&step, &mut workspace.cargo(&build)).map_err(BenchError::Build)?;
    step.done("");
    let mut compare = Command::new(workspace.target.join("release/image"));
    compare.arg("compare").arg(&ready.rootfs).arg(&images);
    compare.arg(workspace.root.join("docs/figures"));
    let status = compare.env("KATA_VMM", &ready.monitor).status()?;
    if !status.success() {
        return Err(BenchError::Failed(status));
    }
    Ok(())
}
