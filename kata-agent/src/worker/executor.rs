//! The last step inside a container: becoming its program.
//!
//! Owns the exit codes of a program that cannot be executed (127 when it does not exist, 126 otherwise,
//! as a shell has it) and the idle container. Runs after every namespace, capability and identity is set.

use std::io::{self, Write};
use std::path::Path;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use rustix::termios::Winsize;

use super::program;
use crate::sys;

/// Exit code of a program that does not exist.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that exists and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// What the container's process becomes.
#[derive(Debug, Clone)]
pub(crate) enum Workload {
    /// The program of its arguments.
    Program,
    /// Nothing: it reaps its children until it is told to end.
    Idle,
}

impl Executor for Workload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        match self {
            Workload::Idle => idle(),
            Workload::Program => become_program(spec),
        }
    }

    /// The program was looked for before anything was made.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

fn idle() -> ! {
    // The name is for people; without it the process still idles.
    let _ = rustix::thread::set_name(c"pause");
    sys::exit_now(i32::from(sys::idle().is_err()))
}

fn become_program(spec: &Spec) -> ! {
    let process = spec.process().as_ref();
    let args = process
        .and_then(|process| process.args().clone())
        .unwrap_or_default();
    let env = process
        .and_then(|process| process.env().clone())
        .unwrap_or_default();
    set_terminal_size(process);
    let program = args.first().map_or("", String::as_str);
    let error = execute(program, &args, program::search_path(&env));
    // Nobody is left to tell when the container's own standard error fails.
    let _ = writeln!(io::stderr(), "cannot execute {program}: {error}");
    sys::exit_now(if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    })
}

/// Gives the terminal the size that the specification asks for, unless it was resized before the start.
fn set_terminal_size(process: Option<&Process>) {
    let Some(size) = process.and_then(|process| process.console_size()) else {
        return;
    };
    let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_row: cells(size.height()),
        ws_col: cells(size.width()),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = rustix::stdio::stdin();
    // Without a terminal there is nothing to resize.
    if rustix::termios::tcgetwinsize(terminal).is_ok_and(|now| now.ws_row == 0 && now.ws_col == 0) {
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

/// Tries the candidates in order, as execvp(3) does; returns the most telling error.
fn execute(program: &str, args: &[String], path: &str) -> io::Error {
    let mut telling: Option<io::Error> = None;
    for candidate in program::candidates(program, path, Path::new("")) {
        let error = sys::exec(candidate.as_os_str(), args);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => telling = Some(error),
            _ => return error,
        }
    }
    telling.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}
