//! A machine in this process: assembled, run, held and ended.
//!
//! ```text
//!  launch: VM ─► memory ─► interrupts ─► devices ─► kernel, tables ─► processors ─► running
//!                                                                                      │
//!  running ◄── resume ── held ◄── pause ────────────────────────────────────────────── ┤
//!     └── a processor ends: all end, devices give the host what the guest had sent ──► exited
//! ```
//!
//! Threads: the control loop's (this code runs on it and waits for nothing but its own threads), one for
//! each processor, one for each virtio device whose driver is ready.
//! It must not know the control socket, nor addresses and registers: those are the architecture's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::Instant;

use kata_virtio::block::Extent;
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::event::{EventfdFlags, eventfd};

use super::bus::{Bus, Registers, lock};
use super::exits::Exits;
use super::gate::Gate;
use super::kick;
use super::memory::Ram;
use super::vcpu::{self, Shared};
use crate::control::LaunchError;
use crate::hypervisor::shelf::Shelf;
use crate::hypervisor::sockets::Sockets;
use crate::hypervisor::tail::Tail;
use crate::hypervisor::vm::failure;
use crate::hypervisor::{Occurrence, Refusal, Vm};
use crate::machine::{DeviceInfo, MachineInfo, Running, VmExit};

/// Bytes of a processor thread's stack: it decodes registers and copies configuration bytes, no more.
const STACK_BYTES: usize = 256 << 10;

/// A processor's thread.
type Thread = JoinHandle<()>;

/// A machine that runs. The order of the fields is the order in which they go: processors, devices, VM,
/// memory.
pub(in crate::hypervisor) struct Microvm {
    threads: Vec<Thread>,
    /// Gone once the machine has ended, and the devices with it.
    shared: Option<Shared>,
    sockets: Sockets,
    shelf: Shelf,
    console: Console,
    /// What tells of those who follow the console, once there was one.
    followed: Option<OwnedFd>,
    ends: Receiver<VmExit>,
    ended: Arc<OwnedFd>,
    /// Until it was reported.
    running: Option<Running>,
    /// Requests that were carried out and not reported.
    pauses: Vec<bool>,
    paused: bool,
    _vm: VmFd,
    ram: Ram,
}

/// The parts of a machine that is about to run.
pub(super) struct Parts {
    pub(super) vm: VmFd,
    pub(super) ram: Ram,
    pub(super) processors: Vec<VcpuFd>,
    pub(super) bus: Bus,
    pub(super) sockets: Sockets,
    pub(super) shelf: Shelf,
    pub(super) console: Console,
    pub(super) start: Instant,
}

/// What the guest wrote to its serial port.
#[derive(Debug, Clone, Default)]
pub(super) struct Console(Arc<Mutex<Tail>>);

impl Console {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn text(&self) -> String {
        self.tail().text()
    }
}

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Microvm {
    /// Lets the processors run.
    pub(super) fn start(parts: Parts) -> Result<Self, LaunchError> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|cause| failure("make the event of a processor's end", &io::Error::from(cause)))?;
        let (sender, ends) = channel();
        let shared = Shared {
            bus: Arc::new(parts.bus),
            gate: Arc::new(Gate::new(parts.processors.len())),
            exits: Arc::new(Exits::default()),
        };
        let mut microvm = Self {
            threads: Vec::with_capacity(parts.processors.len()),
            shared: Some(shared),
            sockets: parts.sockets,
            shelf: parts.shelf,
            console: parts.console,
            followed: None,
            ends,
            ended: Arc::new(ended),
            running: None,
            pauses: Vec::new(),
            paused: false,
            _vm: parts.vm,
            ram: parts.ram,
        };
        for (index, processor) in (0..).zip(parts.processors) {
            microvm.spawn(index, processor, &sender)?;
        }
        microvm.running = Some(Running {
            version: concat!("kata-vmm ", env!("CARGO_PKG_VERSION")).to_owned(),
            machine_type: "microvm".to_owned(),
            pids: Vec::new(),
            launch_time: parts.start.elapsed(),
        });
        Ok(microvm)
    }

    /// Starts a processor's thread.
    fn spawn(&mut self, index: u8, processor: VcpuFd, sender: &Sender<VmExit>) -> Result<(), LaunchError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let end = End {
            sender: sender.clone(),
            ended: Arc::clone(&self.ended),
            gate: Arc::clone(&shared.gate),
            exit: Some(vcpu::panicked(index)),
        };
        let thread = spawn(index, processor, shared.clone(), end)
            .map_err(|cause| failure("start a processor's thread", &cause))?;
        self.threads.push(thread);
        Ok(())
    }

    fn kick_all(&self) {
        self.threads.iter().for_each(kick::kick);
    }

    /// Ends the processors, then the devices; what the guest had sent is given to the host, for at most two
    /// seconds where the host does not read, and requests to a disk are waited for, for at most five.
    fn stop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        shared.gate.stop();
        self.kick_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a processor's thread panicked");
            }
        }
        // The last that knows the bus: the devices end with it, all at once, so that two slow readers on
        // the host cost no more time than one.
        if let Some(bus) = Arc::into_inner(shared.bus) {
            thread::scope(|scope| {
                for device in bus.into_devices() {
                    // Without a thread for it the device is dropped here, before the next one.
                    let end = move || drop(device);
                    if let Err(cause) = thread::Builder::new().spawn_scoped(scope, end) {
                        log::debug!("devices end one after another: {cause}");
                    }
                }
            });
        }
    }

    /// All processors and devices stand still, or none does.
    fn hold(&self, shared: &Shared) -> io::Result<()> {
        shared.gate.hold();
        self.kick_all();
        shared.gate.held();
        let held = on_each(&shared.bus, |device| device.mmio.pause());
        if held.is_err()
            && let Err(cause) = go_on(shared)
        {
            log::error!("a device stays held: {cause}");
        }
        held
    }
}

/// Lets the devices go on, then the processors, whatever becomes of a device.
fn go_on(shared: &Shared) -> io::Result<()> {
    let resumed = on_each(&shared.bus, |device| device.mmio.resume());
    shared.gate.release();
    resumed
}

/// Does it to every device at once; the first error, once all are done. A device for which there is no thread has its
/// turn here.
fn on_each(bus: &Bus, act: fn(&mut Registers) -> io::Result<()>) -> io::Result<()> {
    let outcomes: Vec<_> = thread::scope(|scope| {
        let acts: Vec<_> = bus
            .devices()
            .map(|device| {
                let apart = thread::Builder::new().spawn_scoped(scope, move || act(&mut lock(device)));
                apart.map_err(|_| device)
            })
            .collect();
        acts.into_iter()
            .map(|begun| match begun {
                Ok(apart) => apart
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a device panicked"))),
                Err(device) => act(&mut lock(device)),
            })
            .collect()
    });
    outcomes.into_iter().collect()
}

impl Drop for Microvm {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Vm for Microvm {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = vec![self.ended.as_fd()];
        sources.extend(self.followed.as_ref().map(AsFd::as_fd));
        sources.extend(self.sockets.dials());
        sources
    }

    fn advance(&mut self) -> Vec<Occurrence> {
        acknowledge(&self.ended);
        if self.followed.is_some() {
            self.console.tail().advance();
        }
        let mut occurrences: Vec<_> = self.running.take().map(Occurrence::Running).into_iter().collect();
        occurrences.extend(self.pauses.drain(..).map(Occurrence::Paused));
        let end = self.ends.try_recv().ok();
        if end.is_some() {
            self.stop();
        }
        self.sockets.take_dials(self.shared.is_none(), &mut occurrences);
        occurrences.extend(end.map(Occurrence::Exited));
        occurrences
    }

    fn connect(&mut self, guest_port: u32, host_port: u32, stream: OwnedFd, greeted: bool) {
        self.sockets.connect(guest_port, host_port, stream, greeted);
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }

    fn follow_console(&mut self, socket: OwnedFd) -> io::Result<()> {
        let mut tail = self.console.tail();
        tail.follow(socket)?;
        self.followed = tail
            .source()
            .map(|source| source.try_clone_to_owned())
            .transpose()?;
        Ok(())
    }

    fn pause(&mut self, paused: bool) -> Result<(), Refusal> {
        let outcome = match &self.shared {
            Some(shared) if paused && !self.paused => self.hold(shared),
            Some(shared) if self.paused && !paused => go_on(shared),
            _ => Ok(()),
        };
        if !paused {
            // The processors go on, whatever became of a device.
            self.paused = false;
        }
        outcome.map_err(|cause| Refusal {
            operation: match paused {
                true => "holding the machine".to_owned(),
                false => "letting every device of the machine go on".to_owned(),
            },
            reason: cause.to_string(),
        })?;
        self.paused = paused;
        self.pauses.push(paused);
        // The control loop comes back for it.
        signal(&self.ended);
        Ok(())
    }

    fn add_extent(&mut self, file: OwnedFd) -> Result<Extent, Refusal> {
        self.shelf.add(file)
    }

    fn remove_extent(&mut self, offset: u64) -> Result<(), Refusal> {
        self.shelf.remove(offset)
    }

    fn info(&self) -> MachineInfo {
        let shared = self.shared.as_ref();
        MachineInfo {
            paused: self.paused,
            exits: shared.map(|shared| shared.exits.by_name()).unwrap_or_default(),
            resident_bytes: self.ram.resident_bytes(),
            devices: shared
                .map(|shared| shared.bus.each().map(|device| figures(&device)).collect())
                .unwrap_or_default(),
        }
    }
}

/// What the device did, and what its transport did for it.
fn figures(device: &Registers) -> DeviceInfo {
    let mut figures = device.mmio.meter().figures();
    figures.extend(device.mmio.figures());
    DeviceInfo::new(&device.name, figures)
}

/// What a processor's thread does at its end, also when it panics: device code runs on it too.
struct End {
    sender: Sender<VmExit>,
    ended: Arc<OwnedFd>,
    gate: Arc<Gate>,
    /// Why it ended; none when it was told to.
    exit: Option<VmExit>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.gate.left();
        if let Some(exit) = self.exit.take() {
            log::debug!("a processor ended: {exit:?}");
            // The control loop may be gone, and then nobody asks.
            drop(self.sender.send(exit));
            signal(&self.ended);
        }
    }
}

fn spawn(index: u8, mut processor: VcpuFd, shared: Shared, end: End) -> io::Result<Thread> {
    let run = move || {
        let mut end = end;
        end.exit = match kick::arm(&processor) {
            Ok(()) => vcpu::run(index, &mut processor, &shared),
            Err(cause) => Some(vcpu::stopped(
                index,
                &mut processor,
                format!("no signal mask: {cause}"),
            )),
        };
    };
    let builder = Builder::new()
        .name(format!("vcpu{index}"))
        .stack_size(STACK_BYTES);
    kick::blocked(|| builder.spawn(run))
}

/// What the event told is known; it may not have told anything.
fn acknowledge(event: &OwnedFd) {
    if let Err(cause) = rustix::io::read(event, &mut [0; 8])
        && cause != rustix::io::Errno::AGAIN
    {
        log::error!("the event of a processor's end cannot be read: {cause}");
    }
}

/// Adds one to the event; it can only fail when it is readable anyway.
fn signal(event: &OwnedFd) {
    if let Err(cause) = rustix::io::write(event, &1u64.to_ne_bytes()) {
        log::debug!("the control loop is awake already: {cause}");
    }
}
