//! The monitor as a process: what is done once, around [`serve`].
//!
//! Owns the descriptor the control socket comes on, the session, the logger and the exit code.
//!
//! **Signals and terminals.** The process leaves the session of its caller (setsid(2)), so Ctrl-C and
//! hang-ups of the caller's terminal reach the caller alone, which then decides about the machine. No
//! signal is ignored: SIGTERM or SIGINT sent to the monitor itself end it like SIGKILL does, and the
//! kernel ends the machine's processes with it. The death of the caller is the end of its socket, not a
//! signal, so a caller may hand its end over to another process.
//!
//! **Descriptors.** Only the standard streams are kept of what the caller had open, and the soft limit of
//! open files is raised to the hard one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketType;

use super::{descriptors, logger, serve};
use crate::control::Socket;

/// Exit code for being started by hand.
const USAGE: u8 = 2;

/// Why the process cannot begin to serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(
        "kata-vmm is the monitor of one microVM. It is started by the kata-sandbox library with a control \
         socket as its standard input, and is of no use by hand: standard input is not such a socket"
    )]
    NoSocket,
    #[error("cannot take over the control socket")]
    TakeOver(#[source] io::Error),
}

/// The whole monitor process: serves the machine that is asked for on standard input.
///
/// Exit code 0 when the machine ended or the caller left, 1 when serving failed, 2 when standard input is
/// not a control socket. Messages go to standard error; the variable `KATA_VMM_LOG` (`error` to `trace`)
/// says how many.
///
/// For a program that carries the monitor under a subcommand of its own: call it first thing, while the
/// process has one thread and has opened nothing; it closes every descriptor above 2, and changes the
/// session, the working directory, the limit of open files and standard input.
#[must_use]
pub fn main() -> ExitCode {
    logger::install();
    let socket = match take_over() {
        Ok(socket) => socket,
        Err(cause) => {
            log::error!("{}", chain(&cause));
            return ExitCode::from(USAGE);
        }
    };
    match serve(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            log::error!("{}", chain(&cause));
            ExitCode::FAILURE
        }
    }
}

/// Takes the control socket from standard input, leaves `/dev/null` there, drops what else the caller had
/// open, and leaves its session.
fn take_over() -> Result<Socket, StartError> {
    let stdin = io::stdin();
    if !is_control_socket(&stdin) {
        return Err(StartError::NoSocket);
    }
    // Linux before 5.9 cannot: what was inherited then stays open.
    if let Err(cause) = descriptors::close_inherited() {
        log::warn!("cannot close what was inherited: {cause}");
    }
    if let Err(cause) = descriptors::raise_limit() {
        log::warn!("cannot raise the limit of open files: {cause}");
    }
    let socket = stdin.as_fd().try_clone_to_owned().map_err(StartError::TakeOver)?;
    replace_stdin().map_err(|cause| StartError::TakeOver(cause.into()))?;
    // Refused to the leader of a process group: whoever starts it must not have made it one.
    if let Err(cause) = rustix::process::setsid() {
        log::warn!("cannot leave the caller's session: {cause}");
    }
    // The caller's directory may be unmounted while the machine runs.
    rustix::process::chdir("/").map_err(|cause| StartError::TakeOver(cause.into()))?;
    Ok(Socket::from_fd(socket))
}

/// No child and no library call can take a message from the socket any more.
fn replace_stdin() -> Result<(), Errno> {
    let null: OwnedFd = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)
}

fn is_control_socket(fd: &impl AsFd) -> bool {
    let socket =
        rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    socket && rustix::net::sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// An error and its causes, once each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
