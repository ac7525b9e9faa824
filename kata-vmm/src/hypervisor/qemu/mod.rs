//! QEMU as a child of the monitor: the only place that knows it.
//!
//! ```text
//!  spawned, stopped ──greeting──► capabilities, cont ──answer──► running ──SHUTDOWN──► leaving
//!        │                              │                          │                     │
//!        └───────── the child ends ─────┘                          └── the child ends ───┘
//!                        ▼                                                  ▼
//!                  Occurrence::Failed                               Occurrence::Exited
//! ```
//!
//! The machine is built while QEMU is stopped (`-S`), so the guest's first instruction runs after its
//! death can no longer be missed. QEMU opens no path of the caller: kernel, initramfs, console, QMP and
//! the connections to our own devices are inherited descriptors. It never sees a disk's image.

mod command_line;
mod find;
mod qmp;
mod rendezvous;
mod timestamp_counter;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kata_virtio::block::Extent;
use kata_virtio::vhost_user::{self, Served};
use kata_virtio::{Device, Meter};

use self::command_line::Plan;
pub(super) use self::find::find;
use self::qmp::{Message, Qmp};
use self::rendezvous::Rendezvous;
use self::timestamp_counter::Measurement;
use super::child::{Child, Status};
use super::devices::{self, Named};
use super::guest_memory;
use super::limits::unsupported;
use super::shelf::Shelf;
use super::sockets::Sockets;
use super::tail::TailReader;
use super::vm::{Files, failure};
use super::{Occurrence, Refusal, Vm};
use crate::control::LaunchError;
use crate::machine::{Accelerator, DeviceInfo, FdIndex, Machine, MachineInfo, Running, VmExit};

/// The machine type of every machine here.
const MACHINE_TYPE: &str = "microvm";

/// A microvm with ACPI has 24 virtio-mmio slots; one is the vsock device's.
const DEVICES_MAX: usize = 16;

/// What this hypervisor starts.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    /// QEMU's system emulator.
    pub(super) binary: &'a Path,
    /// How it runs guest instructions.
    pub(super) accelerator: Accelerator,
    /// A PVH ELF or a bzImage.
    pub(super) kernel: FdIndex,
    /// A cpio archive.
    pub(super) initramfs: FdIndex,
}

/// A QEMU that runs one machine. The child is declared first: it is gone before its devices are.
pub(super) struct Emulator {
    child: Child,
    program: String,
    qmp: Qmp,
    console: TailReader,
    sockets: Sockets,
    shelf: Shelf,
    /// Every device; none once the machine has ended.
    served: Vec<Served>,
    /// Those that QEMU has not connected to yet.
    expected: Vec<Expected>,
    meters: Vec<Metered>,
    /// The guest's.
    memory: File,
    start: Instant,
    /// Product and version, from the greeting.
    version: String,
    phase: Phase,
    paused: bool,
}

/// See the drawing above.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Leaving(VmExit),
}

/// Descriptors of a QEMU that is about to be started: its ends and ours.
struct Connections {
    qmp: (UnixStream, UnixStream),
    console: (UnixStream, UnixStream),
    sockets: Sockets,
    vsock: (Served, OwnedFd),
    /// The vsock device's.
    meter: Arc<dyn Meter>,
}

/// A device, and where QEMU will connect to it.
type Expected = (Rendezvous, Named);

/// A device's name and what it did.
type Metered = (String, Arc<dyn Meter>);

impl Emulator {
    /// Starts QEMU with `machine`.
    pub(super) fn launch(machine: &Machine, boot: &Boot<'_>, files: &Files) -> Result<Self, LaunchError> {
        let start = Instant::now();
        let measurement = (boot.accelerator == Accelerator::Tcg).then(Measurement::start);
        check(machine)?;
        let Connections {
            qmp,
            console,
            sockets,
            vsock,
            meter,
        } = connect(machine)?;
        let (memory, theirs) = memory(machine).map_err(|cause| failure("make guest memory", &cause))?;
        let kernel = files.duplicate(boot.kernel)?;
        let initramfs = files.duplicate(boot.initramfs)?;
        let mut meters = vec![("vsock".to_owned(), meter)];
        let mut disks = devices::disks(machine, files)?;
        let shelf = Shelf::of(machine);
        disks.extend(shelf.device(machine)?);
        let disks = serve(disks, &mut meters)?;
        let (expected, places) = expect(devices::nets(machine, files)?, &mut meters)?;
        let plan = Plan {
            machine,
            accelerator: boot.accelerator,
            timestamp_counter_khz: measurement.map(|measurement| measurement.khz()),
            memory: theirs.as_raw_fd(),
            kernel: kernel.as_raw_fd(),
            initramfs: initramfs.as_raw_fd(),
            disks: ends(&disks),
            nets: places.iter().map(AsRawFd::as_raw_fd).collect(),
            qmp: qmp.1.as_raw_fd(),
            console: console.1.as_raw_fd(),
            vsock: vsock.1.as_raw_fd(),
        };
        let arguments = command_line::arguments(&plan);
        log::debug!("{} {arguments:?}", boot.binary.display());
        let mut kept = vec![theirs, kernel, initramfs, qmp.1.into(), console.1.into(), vsock.1];
        let (mut served, theirs): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
        served.push(vsock.0);
        kept.extend(theirs);
        kept.extend(places);
        Ok(Self {
            child: Child::spawn(boot.binary, &arguments, kept)?,
            program: boot.binary.display().to_string(),
            qmp: Qmp::new(qmp.0).map_err(|cause| failure("watch QMP", &cause))?,
            console: TailReader::new(console.0.into())
                .map_err(|cause| failure("watch the console", &cause))?,
            sockets,
            shelf,
            served,
            expected,
            meters,
            memory,
            start,
            version: String::new(),
            phase: Phase::Starting,
            paused: false,
        })
    }

    /// Serves the devices that QEMU has connected to.
    fn welcome(&mut self) -> Result<(), LaunchError> {
        let arrived = self
            .expected
            .extract_if(.., |(rendezvous, _)| rendezvous.has_arrived());
        for (rendezvous, (name, device)) in arrived {
            let served = vhost_user::serve_at(device, &rendezvous.into_listener())
                .map_err(|cause| failure(&format!("serve the device {name}"), &cause))?;
            self.served.push(served);
        }
        Ok(())
    }

    /// Takes in what QEMU says.
    fn listen(&mut self, occurrences: &mut Vec<Occurrence>) -> io::Result<()> {
        for message in self.qmp.advance()? {
            match message {
                Message::Greeting { greeting } => {
                    self.version = greeting.version();
                    self.qmp.execute("qmp_capabilities")?;
                    self.qmp.execute("cont")?;
                }
                Message::Return { id, .. } => self.done(id.as_deref().unwrap_or_default(), occurrences),
                Message::Event { event, data } if event == "SHUTDOWN" => {
                    if let Some(exit) = data.reason.as_deref().and_then(exit_of) {
                        self.phase = Phase::Leaving(exit);
                    }
                }
                Message::Event { event, .. } => log::debug!("QEMU reports {event}"),
                Message::Error { error, id } => {
                    let command = id.unwrap_or_default();
                    return Err(io::Error::other(format!("{command}: {}", error.desc)));
                }
            }
        }
        Ok(())
    }

    /// A command was carried out.
    fn done(&mut self, command: &str, occurrences: &mut Vec<Occurrence>) {
        match (command, &self.phase) {
            ("cont", Phase::Starting) => {
                occurrences.push(Occurrence::Running(self.running()));
                self.phase = Phase::Running;
            }
            ("cont", Phase::Running) => {
                self.paused = false;
                occurrences.push(Occurrence::Paused(false));
            }
            ("stop", Phase::Running) => {
                self.paused = true;
                occurrences.push(Occurrence::Paused(true));
            }
            _ => {}
        }
    }

    fn running(&self) -> Running {
        Running {
            version: self.version.clone(),
            machine_type: MACHINE_TYPE.to_owned(),
            pids: vec![self.child.id()],
            launch_time: self.start.elapsed(),
        }
    }

    fn end(&self, Status { code, signal }: Status) -> Occurrence {
        let stderr_tail = self.child.output();
        match &self.phase {
            Phase::Starting => Occurrence::Failed(LaunchError::Ended {
                program: self.program.clone(),
                code,
                signal,
                stderr_tail,
            }),
            Phase::Leaving(exit) if code == Some(0) => Occurrence::Exited(exit.clone()),
            Phase::Leaving(_) | Phase::Running => Occurrence::Exited(VmExit::HypervisorDied {
                code,
                signal,
                stderr_tail,
            }),
        }
    }

    /// After QEMU's end: gives the host what the guest had sent, for at most two seconds where the host does
    /// not read, and closes all streams.
    fn drain(&mut self) {
        for served in self.served.drain(..) {
            if let Err(cause) = served.wait() {
                log::warn!("a device ends: {cause}");
            }
        }
    }

    /// QEMU's process or protocol cannot be followed any more.
    fn lost(&self, operation: &str, cause: &io::Error) -> Occurrence {
        match self.phase {
            Phase::Starting => Occurrence::Failed(failure(operation, cause)),
            Phase::Running | Phase::Leaving(_) => Occurrence::Exited(VmExit::HypervisorDied {
                code: None,
                signal: None,
                stderr_tail: format!("{}{operation}: {cause}", self.child.output()),
            }),
        }
    }
}

impl Vm for Emulator {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources: Vec<_> = self.child.sources().collect();
        sources.extend(self.qmp.source());
        sources.extend(self.console.sources());
        sources.extend(self.sockets.dials());
        sources.extend(self.expected.iter().map(|(rendezvous, _)| rendezvous.source()));
        sources
    }

    fn advance(&mut self) -> Vec<Occurrence> {
        let mut occurrences = Vec::new();
        // The child first: what it said before its end is read after its end is known.
        let status = self.child.advance();
        self.console.drain();
        if let Err(error) = self.welcome() {
            occurrences.push(Occurrence::Failed(error));
            return occurrences;
        }
        if let Err(cause) = self.listen(&mut occurrences) {
            // A child that is gone does not take commands; its status says more.
            if matches!(status, Ok(None)) && cause.kind() != io::ErrorKind::BrokenPipe {
                occurrences.push(self.lost("follow QMP", &cause));
                return occurrences;
            }
        }
        if matches!(status, Ok(Some(_))) {
            self.drain();
        }
        self.sockets.take_dials(self.served.is_empty(), &mut occurrences);
        match status {
            Ok(None) => {}
            Ok(Some(status)) => occurrences.push(self.end(status)),
            Err(cause) => occurrences.push(self.lost("wait for QEMU", &cause)),
        }
        occurrences
    }

    fn connect(&mut self, guest_port: u32, host_port: u32, stream: OwnedFd, greeted: bool) {
        self.sockets.connect(guest_port, host_port, stream, greeted);
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }

    fn follow_console(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.console.follow(socket)
    }

    fn pause(&mut self, paused: bool) -> Result<(), Refusal> {
        let command = if paused { "stop" } else { "cont" };
        let refusal = |reason: String| Refusal {
            operation: "holding the machine".to_owned(),
            reason,
        };
        match self.phase {
            Phase::Running => self
                .qmp
                .execute(command)
                .map_err(|cause| refusal(cause.to_string())),
            Phase::Starting | Phase::Leaving(_) => Err(refusal("it does not run".to_owned())),
        }
    }

    fn add_extent(&mut self, file: OwnedFd) -> Result<Extent, Refusal> {
        self.shelf.add(file)
    }

    fn remove_extent(&mut self, offset: u64) -> Result<(), Refusal> {
        self.shelf.remove(offset)
    }

    fn info(&self) -> MachineInfo {
        MachineInfo {
            paused: self.paused,
            devices: self
                .meters
                .iter()
                .map(|(name, meter)| DeviceInfo::new(name, meter.figures()))
                .collect(),
            resident_bytes: guest_memory::resident_bytes(&self.memory),
            ..MachineInfo::default()
        }
    }
}

/// What this hypervisor refuses beyond what all refuse.
fn check(machine: &Machine) -> Result<(), LaunchError> {
    if !machine.acpi {
        return Err(unsupported("a machine without ACPI", "QEMU's has it"));
    }
    let count = machine.disks.len() + usize::from(machine.shelf.is_some()) + machine.nets.len();
    if count > DEVICES_MAX {
        let reason = format!("a {MACHINE_TYPE} machine has at most {DEVICES_MAX}");
        return Err(unsupported(format!("{count} disks and network cards"), reason));
    }
    Ok(())
}

/// The guest's memory, and QEMU's descriptor of it.
fn memory(machine: &Machine) -> io::Result<(File, OwnedFd)> {
    let memory = guest_memory::fresh(u64::from(machine.memory.0) << 20)?;
    let theirs = memory.try_clone()?;
    Ok((memory, theirs.into()))
}

/// QEMU's ends of these devices' connections.
fn ends(served: &[(Served, OwnedFd)]) -> Vec<RawFd> {
    served.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect()
}

fn connect(machine: &Machine) -> Result<Connections, LaunchError> {
    let pair = || UnixStream::pair().map_err(|cause| failure("connect to QEMU", &cause));
    let (sockets, device) = Sockets::new(machine.guest_cid, &machine.host_ports)?;
    let meter = device.meter();
    Ok(Connections {
        meter,
        qmp: pair()?,
        console: pair()?,
        sockets,
        vsock: vhost_user::serve(device).map_err(|cause| failure("serve the vsock device", &cause))?,
    })
}

/// Serves devices; beside each is QEMU's end of its connection. What they did can be asked of the meters.
fn serve(devices: Vec<Named>, meters: &mut Vec<Metered>) -> Result<Vec<(Served, OwnedFd)>, LaunchError> {
    devices
        .into_iter()
        .map(|(name, device)| {
            let meter = device.meter();
            let served = vhost_user::serve_boxed(device)
                .map_err(|cause| failure(&format!("serve the device {name}"), &cause))?;
            meters.push((name, meter));
            Ok(served)
        })
        .collect()
}

/// Devices that QEMU connects to by itself, and what it inherits for that.
fn expect(
    devices: Vec<Named>,
    meters: &mut Vec<Metered>,
) -> Result<(Vec<Expected>, Vec<OwnedFd>), LaunchError> {
    let expect = |(name, device): Named| {
        let (rendezvous, place) = Rendezvous::new()
            .map_err(|cause| failure(&format!("make a socket for the device {name}"), &cause))?;
        meters.push((name.clone(), device.meter()));
        Ok(((rendezvous, (name, device)), place))
    };
    devices.into_iter().map(expect).collect()
}

/// What a reason of `SHUTDOWN` means (QEMU qapi/run-state.json, `ShutdownCause`); `None` for those of the host.
fn exit_of(reason: &str) -> Option<VmExit> {
    match reason {
        "guest-shutdown" => Some(VmExit::PowerOff),
        "guest-reset" | "guest-panic" | "subsystem-reset" => Some(VmExit::GuestReset),
        _ => None,
    }
}
