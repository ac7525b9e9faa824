//! One entry point for people and CI: `cargo xtask quickstart`, `test`, `bed`, `bench`, `guest`, `kernel`,
//! `tidy`, `conformance`.
//!
//! It owns how this repository is set up, built and judged on a machine.
//! It must not know how a sandbox works: it makes the files that the libraries look for, and runs programs.
#![expect(clippy::print_stdout, reason = "a program for people prints")]

mod bed;
mod bench;
mod conformance;
mod distribution;
mod doctor;
mod guest;
mod images;
mod kernel;
mod making;
mod packages;
mod partial;
mod process;
mod progress;
mod quickstart;
mod rootfs;
mod setup;
mod test;
mod tidy;
mod units;
mod workspace;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Tasks of the kata-rs repository.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    propagate_version = false
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Set everything up, then run the `hello` example: a container in a VM of its own
    Quickstart,
    /// Set everything up, then run the whole test suite
    Test(test::Options),
    /// Run any command on a real KVM: in an outer guest that QEMU emulates
    Bed(bed::Options),
    /// Measure, and write table and plot into docs/figures
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Make the guest's kernel, initramfs and agent, as far as something changed
    Guest,
    /// Build the tailored kernel of guests from the distribution's source, and make it theirs
    Kernel {
        /// What it is for
        #[arg(long, value_enum, default_value = "default")]
        variant: kernel::Variant,
        /// Build it once more, and fail unless every byte is the same
        #[arg(long)]
        reproduce: bool,
    },
    /// Say what this machine has of what sandboxes need, and how to mend what it has not
    Doctor(doctor::Options),
    /// Check the laws of this repository that no compiler checks
    Tidy,
    /// Write docs/conformance.md: what has to hold, and the tests that hold it
    Conformance,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode, Box<dyn Error>> {
    let workspace = Workspace::find()?;
    match task {
        Task::Quickstart => quickstart::run(&workspace)?,
        Task::Test(options) => return Ok(test::run(&workspace, &options)?),
        Task::Bed(options) => return Ok(bed::run(&workspace, &options)?),
        Task::Bench(what) => bench::run(&workspace, &what)?,
        Task::Guest => {
            guest::make(&workspace)?;
        }
        Task::Kernel { variant, reproduce } => {
            setup::provide_tailored_kernel(&workspace, variant)?;
            if reproduce {
                setup::reproduce_kernel(variant)?;
            }
        }
        Task::Doctor(options) => return Ok(doctor::run(&options)),
        Task::Tidy => {
            tidy::check(&workspace)?;
            println!("tidy: every law is kept");
        }
        Task::Conformance => conformance::write(&workspace.root)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An error and what caused it, each once.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (**error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
