//! A machine that was started, as the control loop sees it: the seam that every hypervisor fills.
//!
//! ```text
//!  launch ──► starting ──► running ──► exited
//!                │ Occurrence::   │ Occurrence::
//!                ▼    Failed      ▼    Exited
//!              (gone)           (gone)
//! ```
//!
//! A [`Vm`] has no thread that anyone outside it could see: whoever owns it polls
//! [`sources`](Vm::sources), calls [`advance`](Vm::advance), and gets [`Occurrence`]s.
//! It must not know the control socket.

use std::os::fd::{BorrowedFd, OwnedFd};

use kata_virtio::block::Extent;

use super::{kvm, limits, process, qemu};
use crate::control::LaunchError;
use crate::machine::{Boot, FdIndex, Hypervisor, Machine, MachineInfo, Running, VmExit};

/// What a machine did.
#[derive(Debug)]
pub(crate) enum Occurrence {
    /// It runs; comes once.
    Running(Running),
    /// It did not come to run; nothing follows.
    Failed(LaunchError),
    /// The guest connected to a port of the host, one of the machine's
    /// [`host_ports`](Machine::host_ports).
    Dialed {
        /// The port.
        host_port: u32,
        /// The connection; dropping it resets it.
        stream: OwnedFd,
    },
    /// It is held, or goes on.
    Paused(bool),
    /// It ended; nothing follows.
    Exited(VmExit),
}

/// A request that a machine cannot meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What was asked.
    pub(crate) operation: String,
    /// Why not.
    pub(crate) reason: String,
}

/// A started machine. Dropping it kills it and waits until its processes are gone.
pub(crate) trait Vm {
    /// What to poll for readability; may change with every [`advance`](Self::advance).
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Takes in what happened, without waiting for more. Only at the machine's end it may take up to two
    /// seconds: what the guest had sent is given to a host that is slow to read.
    fn advance(&mut self) -> Vec<Occurrence>;

    /// Connects `stream` to a port of the guest; where nobody listens the stream is closed. One that is `greeted` is
    /// written `OK <host port>\n` once the guest accepted.
    fn connect(&mut self, guest_port: u32, host_port: u32, stream: OwnedFd, greeted: bool);

    /// The end of what the guest wrote to its console, at most 16 KiB.
    fn console_tail(&self) -> String;

    /// Has the guest's console followed from the beginning of what is kept of it, by a `SOCK_SEQPACKET` socket: see
    /// [`Request::FollowConsole`](crate::control::Request::FollowConsole).
    ///
    /// # Errors
    /// When the process has no descriptors left.
    fn follow_console(&mut self, socket: OwnedFd) -> std::io::Result<()>;

    /// Holds the processors and devices of a running machine, or lets them go on. The answer is
    /// [`Occurrence::Paused`], or is one of the machine's end.
    ///
    /// # Errors
    /// What this hypervisor cannot do. A hold that fails is taken back; after a failure to go on the processors
    /// run, and the device that the reason names may not.
    fn pause(&mut self, paused: bool) -> Result<(), Refusal>;

    /// Shows a file on the machine's shelf.
    ///
    /// # Errors
    /// When it has none, or the file cannot be shown.
    fn add_extent(&mut self, file: OwnedFd) -> Result<Extent, Refusal>;

    /// Shows the file at this place no more.
    ///
    /// # Errors
    /// When there is none.
    fn remove_extent(&mut self, offset: u64) -> Result<(), Refusal>;

    /// Its figures now.
    fn info(&self) -> MachineInfo;
}

/// Starts a machine on the hypervisor it names. `files` are the descriptors it refers to; those that the
/// hypervisor does not need any more are closed.
///
/// Children die with the calling thread.
///
/// # Errors
/// [`LaunchError::Unsupported`] before anything is started, [`LaunchError::Spawn`] and
/// [`LaunchError::Monitor`] when starting fails. What fails later is [`Occurrence::Failed`].
pub(crate) fn launch(machine: &Machine, files: Vec<OwnedFd>) -> Result<Box<dyn Vm>, LaunchError> {
    limits::check(machine, files.len())?;
    let files = Files(files);
    match (&machine.hypervisor, &machine.boot) {
        (Hypervisor::Qemu { binary, accelerator }, Boot::Kernel { kernel, initramfs }) => {
            let boot = qemu::Boot {
                binary,
                accelerator: *accelerator,
                kernel: *kernel,
                initramfs: *initramfs,
            };
            Ok(Box::new(qemu::Emulator::launch(machine, &boot, &files)?))
        }
        (Hypervisor::Process, Boot::Program { program }) => {
            Ok(Box::new(process::Program::launch(machine, *program, &files)?))
        }
        (Hypervisor::Kvm, Boot::Kernel { kernel, initramfs }) => {
            Ok(Box::new(kvm::launch(machine, *kernel, *initramfs, &files)?))
        }
        (Hypervisor::Kvm | Hypervisor::Qemu { .. }, Boot::Program { .. }) => Err(limits::unsupported(
            "starting a program in place of a guest",
            "this hypervisor boots a kernel",
        )),
        (Hypervisor::Process, Boot::Kernel { .. }) => Err(limits::unsupported(
            "booting a kernel",
            "the process backend has no machine",
        )),
    }
}

/// The descriptors that came with a machine.
#[derive(Debug)]
pub(super) struct Files(Vec<OwnedFd>);

impl Files {
    /// A copy of one, for a child.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub(super) fn duplicate(&self, FdIndex(index): FdIndex) -> Result<OwnedFd, LaunchError> {
        let file = self.0.get(index).ok_or_else(|| {
            limits::unsupported(
                format!("descriptor {index}"),
                format!("{} came with the message", self.0.len()),
            )
        })?;
        file.try_clone()
            .map_err(|cause| failure("copy a descriptor", &cause))
    }
}

/// Shorthand for [`LaunchError::Monitor`], with the cause's own causes.
pub(super) fn failure(operation: &str, cause: &dyn std::error::Error) -> LaunchError {
    LaunchError::Monitor {
        operation: operation.to_owned(),
        cause: chain(cause),
    }
}

/// An error and its causes in one line: what crosses a process boundary has no sources.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
