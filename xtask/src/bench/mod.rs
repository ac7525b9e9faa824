//! `cargo xtask bench`: whole-system measurements. It sets up and builds; the package `benches` measures.

mod devices;
mod exec;
mod image;
mod nested;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use clap::Subcommand;
use kata_image::kernel::ModuleError;

use crate::bed::{Bed, BedError, End};
use crate::guest::GuestError;
use crate::kernel::Variant;
use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::setup::{self, Purpose, SetupError};
use crate::workspace::Workspace;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// From create to first output, the round trip of an exec, and host memory, against a bare guest;
    /// then, in the nested bed, monitors with KVM and guest kernels against each other
    Boot {
        /// A directory with other monitors: firecracker, cloud-hypervisor
        #[arg(long, value_name = "DIR")]
        peers: Option<PathBuf>,
        /// Only the comparison in the nested bed
        #[arg(long)]
        nested_only: bool,
    },
    /// Our block and net devices with Linux's own drivers against QEMU's, in the nested bed
    Devices {
        /// Only contenders whose name contains this; writes no files
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Processes and containers in a sandbox that runs, against runc inside of the same guest
    Exec,
    /// From an image in a registry to what a machine can boot, against skopeo, umoci and mkfs.erofs
    Image,
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
    /// The nested bed.
    #[error("cannot measure in the nested bed")]
    Bed(#[from] BedError),
    /// The init of the guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The modules of the guest's kernel.
    #[error("cannot take the guest's modules from the kernel's package")]
    Modules(#[from] ModuleError),
    /// The benchmark failed in the bed.
    #[error("the benchmark failed in the nested bed ({0:?})")]
    Nested(End),
}

/// Measures.
///
/// # Errors
/// When something is missing and cannot be made, or the benchmark fails.
pub(crate) fn run(workspace: &Workspace, what: &Bench) -> Result<(), BenchError> {
    match what {
        Bench::Boot { peers, nested_only } => boot(workspace, peers.as_deref(), *nested_only),
        Bench::Devices { only } => devices::run(workspace, only.as_deref()),
        Bench::Exec => exec::run(workspace),
        Bench::Image => image::run(workspace),
    }
}

fn boot(workspace: &Workspace, peers: Option<&Path>, nested_only: bool) -> Result<(), BenchError> {
    // Both kernels are compared.
    setup::provide_tailored_kernel(workspace, Variant::Default)?;
    let ready = setup::provide(workspace, Purpose::Run)?;
    let step = Step::start("benchmark");
    let build = ["build", "--release", "--package=benches", "--bin=boot"];
    process::run(&step, &mut workspace.cargo(&build)).map_err(BenchError::Build)?;
    let init = build_baseline_init(workspace, &step)?;
    step.done("");
    let figures = workspace.root.join("docs/figures");
    std::fs::create_dir_all(&figures)?;
    let program = workspace.target.join("release/boot");
    if !nested_only {
        let mut here = Command::new(&program);
        here.arg(&ready.rootfs).arg(&init).arg(&figures);
        let status = here.env("KATA_VMM", &ready.monitor).status()?;
        if !status.success() {
            return Err(BenchError::Failed(status));
        }
    }
    let table = nested::run(&Bed::make(workspace, &ready)?, &program, &init, peers)?;
    let path = figures.join("boot.nested.table.md");
    std::fs::write(&path, table)?;
    eprintln!("the table is in {}", path.display());
    Ok(())
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
