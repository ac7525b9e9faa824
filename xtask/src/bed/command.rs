//! `cargo xtask bed -- COMMAND…`: anything, inside the bed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Bed, BedError, Clock, End, Job, PROGRAMS};
use crate::setup::{self, Purpose, SetupError};
use crate::workspace::Workspace;

/// What to run in the bed, and with what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Start a shell on this terminal
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    shell: bool,
    /// Take this program along, with its libraries, as /kata/NAME (may be given more than once)
    #[arg(long = "with", value_name = "PROGRAM")]
    with: Vec<PathBuf>,
    /// Use the monitor of an optimized build
    #[arg(long)]
    release: bool,
    /// Set a variable for the command (may be given more than once)
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// Let the clock of the bed count instructions, so that figures repeat
    #[arg(long)]
    counted: bool,
    /// Cut the command after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command; the monitor is /kata/kata-vmm, the tests' root filesystem /bed/rootfs.erofs
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Why the command did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Something that it needs is missing.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The bed.
    #[error(transparent)]
    Bed(#[from] BedError),
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs it; its lines go to standard output, its status is ours.
///
/// # Errors
/// When something is missing, or the bed breaks down.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode, CommandError> {
    let purpose = if options.release {
        Purpose::Run
    } else {
        Purpose::Test
    };
    let bed = Bed::make(workspace, &setup::provide(workspace, purpose)?)?;
    let program = |from: &PathBuf| {
        let name = from.file_name().unwrap_or(from.as_os_str());
        (PathBuf::from(PROGRAMS).join(name), from.clone())
    };
    let job = Job {
        command: if options.shell {
            vec!["bash".into()]
        } else {
            options.command.clone()
        },
        environment: options
            .environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        programs: options.with.iter().map(program).collect(),
        clock: if options.counted {
            Clock::Instructions
        } else {
            Clock::Time
        },
        allowed: options.timeout.map(Duration::from_secs),
    };
    let end = if options.shell {
        bed.run_on_terminal(&job)?
    } else {
        bed.run(&job, &mut |line| println!("{line}"))?
    };
    Ok(match end {
        End::Exit(status) => ExitCode::from(status),
        // As a shell says it (bash(1), "Exit status").
        End::Signal(signal) => ExitCode::from(signal.saturating_add(128)),
    })
}
