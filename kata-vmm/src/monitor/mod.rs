//! The control loop: one thread that owns one machine and answers one caller.
//!
//! ```text
//!            Hello ►             Launched ►              Exited ►
//!  greeting ───────► awaiting ──► starting ──► running ──────────► ended
//!                       │            │            │                  ▲
//!                       │ bad        │ fails      │                  │
//!                       │            ▼            │                  │
//!                       └──► LaunchFailed ► ──────┼──────────────────┤
//!                                                 │                  │
//!     the caller's end of the socket closes, at any point: kill ─────┘
//! ```
//!
//! Everything is handled in the order it arrives, nothing waits for the guest, and the machine is gone
//! before [`serve`] returns.
//! It must not know which hypervisor runs the machine.

mod descriptors;
mod logger;
mod program;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use kata_virtio::block::Extent;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

pub use self::program::main;
use crate::control::{Event, LaunchError, PROTOCOL, Request, Socket};
use crate::hypervisor::{Occurrence, Refusal, Vm, launch};
use crate::machine::Machine;

/// Why the monitor stopped serving before the machine's end could be reported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The control socket failed.
    #[error("cannot {operation} on the control socket")]
    Control {
        /// What was tried.
        operation: &'static str,
        /// The operating system's answer.
        #[source]
        cause: io::Error,
    },
    /// The caller broke the protocol after the launch.
    #[error("the caller broke the control protocol: {reason}")]
    Protocol {
        /// How.
        reason: &'static str,
    },
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

/// Serves one machine on `socket` until it ends or the other end of the socket closes, in which case the
/// machine is killed. Its processes are gone when this returns.
///
/// It blocks the calling thread, names it after the machine, and starts the machine's children from it:
/// they die with that *thread*. On a thread of the caller's own process, which is for debugging, it is no
/// security boundary.
///
/// A launch that fails is an answer to the caller, not an error here.
///
/// # Errors
/// When the control socket fails in another way than closing, or the caller breaks the protocol.
pub fn serve(socket: Socket) -> Result<(), ServeError> {
    match converse(&socket) {
        // The caller left without reading: there is nobody to tell.
        Err(ServeError::Control { cause, .. })
            if matches!(
                cause.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

fn converse(socket: &Socket) -> Result<(), ServeError> {
    send(
        socket,
        &Event::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        None,
    )?;
    let started = match receive_launch(socket) {
        Ok(None) => return Ok(()),
        Ok(Some((machine, files))) => {
            name_thread(&machine.name);
            launch(&machine, files)
        }
        Err(cause) => Err(cause),
    };
    match started {
        Ok(mut vm) => run(socket, vm.as_mut()),
        Err(cause) => {
            log::info!("launch failed: {cause}");
            send(socket, &Event::LaunchFailed(cause), None)
        }
    }
}

/// The first message; `None` when the caller left instead.
fn receive_launch(socket: &Socket) -> Result<Option<(Machine, Vec<OwnedFd>)>, LaunchError> {
    let malformed = |cause: &dyn std::fmt::Display| LaunchError::Monitor {
        operation: "read the launch message".to_owned(),
        cause: cause.to_string(),
    };
    // As a bare value first: another protocol's machine may look different, and its version says so.
    let received = loop {
        match socket.recv::<serde_json::Value>() {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            received => break received.map_err(|cause| malformed(&cause))?,
        }
    };
    let Some((message, files)) = received else {
        return Ok(None);
    };
    if let Some(caller) = message
        .pointer("/Launch/protocol")
        .and_then(serde_json::Value::as_u64)
        && caller != u64::from(PROTOCOL)
    {
        return Err(LaunchError::Protocol {
            monitor: PROTOCOL,
            caller: u32::try_from(caller).unwrap_or(u32::MAX),
        });
    }
    match serde_json::from_value(message) {
        Ok(Request::Launch { machine, .. }) => Ok(Some((*machine, files))),
        Ok(_) => Err(malformed(&"it is another message")),
        Err(cause) => Err(malformed(&cause)),
    }
}

/// From the start of the machine to its end.
fn run(socket: &Socket, vm: &mut dyn Vm) -> Result<(), ServeError> {
    loop {
        for occurrence in vm.advance() {
            if report(socket, vm, occurrence)? == Next::End {
                return Ok(());
            }
        }
        if wait(socket, vm)? && answer(socket, vm)? == Next::End {
            log::info!("the caller left: killing the machine");
            return Ok(());
        }
    }
}

/// Waits for anything to happen; true when it is (also) the caller.
fn wait(socket: &Socket, vm: &dyn Vm) -> Result<bool, ServeError> {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(
        vm.sources()
            .into_iter()
            .map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)),
    );
    match poll(&mut fds, None) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(cause) => Err(ServeError::Control {
            operation: "wait",
            cause: cause.into(),
        }),
    }
}

/// Tells the caller what the machine did.
fn report(socket: &Socket, vm: &dyn Vm, occurrence: Occurrence) -> Result<Next, ServeError> {
    match occurrence {
        Occurrence::Running(running) => {
            log::info!("{} runs after {:?}", running.version, running.launch_time);
            send(socket, &Event::Launched(running), None)?;
            Ok(Next::Continue)
        }
        Occurrence::Dialed { host_port, stream } => {
            send(socket, &Event::Dialed { host_port }, Some(stream))?;
            Ok(Next::Continue)
        }
        Occurrence::Paused(paused) => {
            send(socket, &Event::Paused { paused }, None)?;
            Ok(Next::Continue)
        }
        Occurrence::Failed(cause) => {
            log::info!("launch failed: {cause}");
            send(socket, &Event::LaunchFailed(cause), None)?;
            Ok(Next::End)
        }
        Occurrence::Exited(reason) => {
            log::info!("the machine ended: {reason:?}");
            let console_tail = vm.console_tail();
            send(socket, &Event::Exited { reason, console_tail }, None)?;
            Ok(Next::End)
        }
    }
}

/// Handles one message of the caller, or its leaving.
fn answer(socket: &Socket, vm: &mut dyn Vm) -> Result<Next, ServeError> {
    let received = match socket.recv::<Request>() {
        Ok(received) => received,
        Err(cause) => match cause.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return Ok(Next::Continue),
            io::ErrorKind::ConnectionReset => return Ok(Next::End),
            _ => {
                return Err(ServeError::Control {
                    operation: "receive",
                    cause,
                });
            }
        },
    };
    match received {
        None => Ok(Next::End),
        Some((Request::Console, _)) => {
            let tail = vm.console_tail();
            send(socket, &Event::Console { tail }, None)?;
            Ok(Next::Continue)
        }
        Some((Request::FollowConsole, mut sockets)) => {
            let Some(socket) = sockets.pop() else {
                return Err(ServeError::Protocol {
                    reason: "a FollowConsole came without its socket",
                });
            };
            if let Err(cause) = vm.follow_console(socket) {
                log::warn!("nobody follows the console: {cause}");
            }
            Ok(Next::Continue)
        }
        Some((Request::Info, _)) => {
            send(socket, &Event::Info(vm.info()), None)?;
            Ok(Next::Continue)
        }
        Some((Request::AddExtent, mut files)) => {
            let Some(file) = files.pop() else {
                return Err(ServeError::Protocol {
                    reason: "an AddExtent came without its file",
                });
            };
            let added = vm.add_extent(file);
            let answer = |Extent { offset, bytes }| Event::ExtentAdded { offset, bytes };
            send(socket, &added.map_or_else(refused, answer), None)?;
            Ok(Next::Continue)
        }
        Some((Request::RemoveExtent { offset }, _)) => {
            let removed = vm.remove_extent(offset);
            let answer = |()| Event::ExtentRemoved { offset };
            send(socket, &removed.map_or_else(refused, answer), None)?;
            Ok(Next::Continue)
        }
        Some((Request::Pause { paused }, _)) => {
            if let Err(refusal) = vm.pause(paused) {
                send(socket, &refused(refusal), None)?;
            }
            Ok(Next::Continue)
        }
        Some((
            Request::Connect {
                guest_port,
                host_port,
                greeted,
            },
            mut streams,
        )) => {
            let Some(stream) = streams.pop() else {
                return Err(ServeError::Protocol {
                    reason: "a Connect came without its stream",
                });
            };
            vm.connect(guest_port, host_port, stream, greeted);
            Ok(Next::Continue)
        }
        Some((Request::Launch { .. }, _)) => Err(ServeError::Protocol {
            reason: "a second Launch came",
        }),
    }
}

fn refused(Refusal { operation, reason }: Refusal) -> Event {
    Event::Refused { operation, reason }
}

fn send(socket: &Socket, event: &Event, stream: Option<OwnedFd>) -> Result<(), ServeError> {
    let streams: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
    loop {
        match socket.send(event, &streams) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                return Err(ServeError::Control {
                    operation: "send",
                    cause,
                });
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// What `ps` and `top` show: 15 bytes (prctl(2), `PR_SET_NAME`).
fn name_thread(machine: &str) {
    let name: String = format!("vmm:{machine}")
        .chars()
        .filter(char::is_ascii_graphic)
        .take(15)
        .collect();
    let outcome = CString::new(name).map(|name| rustix::thread::set_name(&name));
    log::debug!("named after {machine}: {outcome:?}");
}
