//! The guest program as an ordinary process: no machine at all.
//!
//! The program is executed from its descriptor with `--channel-fd N [--disk SERIAL=FD]...`.
//! Over the channel (see [`channel`](super::channel)) both sides hand over connected streams: ours are
//! connections to a port of the "guest", the program's are its dials of a port of the host, which are dropped
//! unless the machine names that port. What comes on the machine's shelf is handed over as a disk that is
//! called `SERIAL@OFFSET`.
//! What it writes to standard output and error is its console; exit code 0 is a power-off.
//!
//! Owns that contract. It isolates nothing by itself, and the machine's processors, memory and guest
//! address do not bind it: it exists for tests of what lives above the monitor.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_virtio::block::Extent;

use super::channel::{Channel, Ports};
use super::child::{Child, Status};
use super::shelf::{Shelf, refusal};
use super::vm::{Files, failure};
use super::{Occurrence, Refusal, Vm};
use crate::control::LaunchError;
use crate::machine::{FdIndex, Machine, MachineInfo, Running, VmExit};

/// A program that stands in for a guest.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// Gone when the program closed its end.
    channel: Option<Channel>,
    shelf: Shelf,
    /// The shelf's, if there is one.
    serial: String,
    /// Ports of the host that the program may dial.
    host_ports: Vec<u32>,
    /// From the start of the launch; taken when it was reported.
    launch_time: Option<Duration>,
}

impl Program {
    /// Executes `program` for `machine`.
    pub(super) fn launch(machine: &Machine, program: FdIndex, files: &Files) -> Result<Self, LaunchError> {
        let start = Instant::now();
        let program = files.duplicate(program)?;
        let (channel, theirs) = Channel::pair().map_err(|cause| failure("make the channel", &cause))?;
        let theirs = theirs.into_fd();
        let path = PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let mut arguments: Vec<OsString> = vec!["--channel-fd".into(), theirs.as_raw_fd().to_string().into()];
        // The program too: an interpreter opens its script by this name.
        let mut kept = vec![program, theirs];
        for disk in &machine.disks {
            let image = files.duplicate(disk.image)?;
            arguments.push("--disk".into());
            arguments.push(format!("{}={}", disk.serial, image.as_raw_fd()).into());
            kept.push(image);
        }
        Ok(Self {
            child: Child::spawn(&path, &arguments, kept)?,
            channel: Some(channel),
            shelf: Shelf::of(machine),
            serial: machine.shelf.clone().unwrap_or_default(),
            host_ports: machine.host_ports.clone(),
            launch_time: Some(start.elapsed()),
        })
    }

    fn take_dials(&mut self, occurrences: &mut Vec<Occurrence>) {
        let Some(channel) = &self.channel else { return };
        if let Err(cause) = channel.take_dials(&self.host_ports, occurrences) {
            log::debug!("the guest program's channel ends: {cause}");
            self.channel = None;
        }
    }

    /// Shows the program a disk of the shelf, or takes it away.
    fn show(&self, operation: &str, offset: u64, file: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        let name = format!("{}@{offset}", self.serial);
        match &self.channel {
            Some(channel) => channel
                .send_disk(&name, file)
                .map_err(|cause| refusal(operation, cause)),
            None => Err(refusal(operation, "the guest program has closed its channel")),
        }
    }

    fn exit(&self, Status { code, signal }: Status) -> VmExit {
        match code {
            Some(0) => VmExit::PowerOff,
            _ => VmExit::HypervisorDied {
                code,
                signal,
                stderr_tail: self.child.output(),
            },
        }
    }
}

impl Vm for Program {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.child
            .sources()
            .chain(self.channel.as_ref().map(AsFd::as_fd))
            .collect()
    }

    fn advance(&mut self) -> Vec<Occurrence> {
        let mut occurrences = Vec::new();
        if let Some(launch_time) = self.launch_time.take() {
            occurrences.push(Occurrence::Running(Running {
                version: "process".to_owned(),
                machine_type: "none".to_owned(),
                pids: vec![self.child.id()],
                launch_time,
            }));
        }
        let status = self.child.advance();
        self.take_dials(&mut occurrences);
        match status {
            Ok(None) => {}
            Ok(Some(status)) => occurrences.push(Occurrence::Exited(self.exit(status))),
            Err(cause) => occurrences.push(Occurrence::Exited(VmExit::HypervisorDied {
                code: None,
                signal: None,
                stderr_tail: format!("its status is unknown: {cause}"),
            })),
        }
        occurrences
    }

    /// The program has no way to accept or refuse: who is to be greeted is greeted at once, and where nobody
    /// listens the stream closes after it.
    fn connect(&mut self, guest_port: u32, host_port: u32, stream: OwnedFd, greeted: bool) {
        let ports = Ports {
            guest: guest_port,
            host: host_port,
        };
        let Some(channel) = &self.channel else { return };
        // A client that is gone by now is none of ours.
        if greeted && rustix::io::write(&stream, format!("OK {host_port}\n").as_bytes()).is_err() {
            return;
        }
        if let Err(cause) = channel.send(ports, stream.as_fd()) {
            log::warn!("connection to port {guest_port} is refused: {cause}");
        }
    }

    fn console_tail(&self) -> String {
        self.child.output()
    }

    fn follow_console(&mut self, socket: OwnedFd) -> std::io::Result<()> {
        self.child.follow_output(socket)
    }

    fn pause(&mut self, _: bool) -> Result<(), Refusal> {
        Err(Refusal {
            operation: "holding the machine".to_owned(),
            reason: "the process backend has no machine".to_owned(),
        })
    }

    fn add_extent(&mut self, file: OwnedFd) -> Result<Extent, Refusal> {
        const OPERATION: &str = "adding an extent";
        let theirs = file.try_clone().map_err(|cause| refusal(OPERATION, cause))?;
        let extent = self.shelf.add(file)?;
        let shown = self.show(OPERATION, extent.offset, Some(theirs.as_fd()));
        if shown.is_err() {
            self.shelf.remove(extent.offset)?;
        }
        shown.map(|()| extent)
    }

    fn remove_extent(&mut self, offset: u64) -> Result<(), Refusal> {
        self.shelf.remove(offset)?;
        self.show("removing an extent", offset, None)
    }

    fn info(&self) -> MachineInfo {
        MachineInfo::default()
    }
}
