//! `cargo xtask bench`: whole-system measurements. It sets up and builds; the package `benches` measures.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use clap::Subcommand;

use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::setup::{self, Purpose, SetupError};
use crate::workspace::Workspace;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// From create to first output, the round trip of an exec, and host memory, against a bare guest
    Boot,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// Something is missing.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The benchmark does not build.
    #[error("cannot build the benchmark")]
    Build(#[source] ProcessError),
    /// The plot's directory or the benchmark itself.
    #[error("cannot run the benchmark")]
    Io(#[from] std::io::Error),
    /// The benchmark failed.
    #[error("the benchmark failed ({0})")]
    Failed(ExitStatus),
}

/// Measures.
///
/// # Errors
/// When something is missing and cannot be made, or the benchmark fails.
pub(crate) fn run(workspace: &Workspace, what: &Bench) -> Result<(), BenchError> {
    match what {
        Bench::Boot => boot(workspace),
    }
}

fn boot(workspace: &Workspace) -> Result<(), BenchError> {
    let ready = setup::provide(workspace, Purpose::Run)?;
    let step = Step::start("benchmark");
    let build = ["build", "--release", "--package=benches", "--bin=boot"];
    process::run(&step, &mut workspace.cargo(&build)).map_err(BenchError::Build)?;
    let init = build_baseline_init(workspace, &step)?;
    step.done("");
    let figures = workspace.root.join("docs/figures");
    std::fs::create_dir_all(&figures)?;
    let status = Command::new(workspace.target.join("release/boot"))
        .arg(&ready.rootfs)
        .arg(init)
        .arg(figures)
        .env("KATA_VMM", &ready.monitor)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(BenchError::Failed(status))
    }
}

/// One static program without dependencies: the compiler alone makes it, in a second.
fn build_baseline_init(workspace: &Workspace, step: &Step) -> Result<PathBuf, BenchError> {
    let program = workspace.target.join("baseline-init");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition=2024",
        "-O",
        "-Ctarget-feature=+crt-static",
        "-Cpanic=abort",
        "-Cstrip=symbols",
    ]);
    rustc
        .arg("-o")
        .arg(&program)
        .arg(workspace.root.join("benches/baseline-init.rs"));
    process::run(step, &mut rustc).map_err(BenchError::Build)?;
    Ok(program)
}
