//! From a [`Machine`] and its descriptors to a [`Microvm`]: every KVM call before the first instruction.
//!
//! The steps stand in [`launch`] in their order, which is KVM's: memory before the interrupt controllers,
//! those before the processors, the kernel before the registers that point into it.
//! It must not know what happens once the machine runs.
#![expect(unsafe_code, reason = "descriptors change hands as numbers")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kata_virtio::transport::Mmio;
use kata_virtio::{Device, Memory};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::arch::boot::{self, Boot};
use super::arch::layout::{self, Slot};
use super::arch::processor::Supported;
use super::arch::{command_line, platform, processor};
use super::bus::{Bus, Registers};
use super::machine::{Console, Microvm, Parts};
use super::memory::{Contents, Ram};
use super::{create_vm, devices};
use crate::control::LaunchError;
use crate::hypervisor::limits::unsupported;
use crate::hypervisor::shelf::Shelf;
use crate::hypervisor::sockets::Sockets;
use crate::hypervisor::vm::{Files, chain, failure};
use crate::machine::{FdIndex, Machine};

/// `QueueNotify` of virtio-mmio (VIRTIO 1.2 §4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;

/// What KVM must be able to do, beside what the architecture needs.
const CAPABILITIES: [(Cap, &str); 5] = [
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "memory slots"),
    (Cap::ImmediateExit, "immediate exits"),
];

/// Builds the machine and lets it run.
pub(in crate::hypervisor) fn launch(
    machine: &Machine,
    kernel: FdIndex,
    initramfs: FdIndex,
    files: &Files,
) -> Result<Microvm, LaunchError> {
    let mut steps = Steps::new();
    let kvm = open(machine, files)?;
    let supported =
        processor::supported(&kvm).map_err(|cause| failure("ask KVM what processors can do", &cause))?;
    steps.done("KVM");
    let ranges = layout::memory_ranges(machine.memory.bytes());
    check_addresses(&ranges, processor::address_bits(&supported))?;
    // Before the VM, so that it is there until the VM is gone.
    let ram =
        Ram::new(&ranges, Contents::Fresh).map_err(|cause| failure("make the guest's memory", &cause))?;
    steps.done("memory");
    let vm = create_vm(&kvm).map_err(|cause| failure("create a VM", &cause))?;
    processor::without_counters(&vm).map_err(|cause| failure("leave performance counters out", &cause))?;
    ram.attach(&vm)
        .map_err(|cause| failure("give the guest its memory", &cause))?;
    platform::interrupt_controllers(&vm)
        .map_err(|cause| failure("make the interrupt controllers", &cause))?;
    steps.done("VM, interrupt controllers");
    let (sockets, vsock) = Sockets::new(machine.guest_cid, &machine.host_ports)?;
    let shelf = Shelf::of(machine);
    let devices = devices::all(machine, files, &shelf, vsock)?;
    let (registers, slots) = attach(&vm, ram.memory(), devices)?;
    let console = Console::default();
    let com1 = platform::com1_interrupt(&vm)
        .map_err(|cause| failure("connect the serial port's interrupt", &cause))?;
    let bus = Bus::new(platform::ports(console.clone(), com1), registers);
    steps.done("devices, platform");
    let file = |index| Ok::<_, LaunchError>(File::from(files.duplicate(index)?));
    let entry = boot::load(&Boot {
        memory: ram.memory(),
        kernel: &file(kernel)?,
        initramfs: &file(initramfs)?,
        command_line: &command_line::words(machine.vcpus, machine.acpi, &slots),
        vcpus: machine.vcpus,
        virtio: &slots,
        acpi: machine.acpi,
    })
    .map_err(|cause| LaunchError::Boot { cause: chain(&cause) })?;
    steps.done("kernel, initramfs, tables");
    let processors = processors(&vm, machine.vcpus, &supported, &entry)?;
    steps.done("processors");
    log::debug!("the machine is assembled: {steps}");
    Microvm::start(Parts {
        vm,
        ram,
        processors,
        bus,
        sockets,
        shelf,
        console,
        start: steps.start,
    })
}

/// What each step of a launch took, for the log.
struct Steps {
    start: Instant,
    last: Instant,
    took: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            last: start,
            took: Vec::new(),
        }
    }

    fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.took.push((step, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.took
            .iter()
            .try_for_each(|(step, took)| write!(f, "{step} {} µs; ", took.as_micros()))?;
        write!(f, "all {} µs", (self.last - self.start).as_micros())
    }
}

fn open(machine: &Machine, files: &Files) -> Result<Kvm, LaunchError> {
    let index = machine
        .kvm
        .ok_or_else(|| unsupported("a machine without /dev/kvm", "this hypervisor needs it"))?;
    let fd = files.duplicate(index)?;
    // SAFETY: the descriptor is open and given away.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    for (capability, what) in CAPABILITIES.into_iter().chain(platform::CAPABILITIES) {
        if !kvm.check_extension(capability) {
            return Err(unsupported(format!("KVM without {what}"), "a machine needs it"));
        }
    }
    Ok(kvm)
}

/// Memory beyond what the processors can address would be a fault that no guest can explain.
fn check_addresses(ranges: &[(GuestAddress, u64)], bits: u32) -> Result<(), LaunchError> {
    let end = ranges.last().map_or(0, |(start, bytes)| start.0 + bytes);
    if end > 1u64.checked_shl(bits).unwrap_or(u64::MAX) {
        return Err(unsupported(
            format!("memory up to {end:#x}"),
            format!("this host's processors address {bits} bits"),
        ));
    }
    Ok(())
}

/// Gives each device its place, its interrupt and its kicks.
pub(super) fn attach(
    vm: &VmFd,
    memory: &Memory,
    devices: Vec<(String, Box<dyn Device>)>,
) -> Result<(Vec<Registers>, Vec<Slot>), LaunchError> {
    let mut registers = Vec::with_capacity(devices.len());
    let mut slots = Vec::with_capacity(devices.len());
    for (index, (name, device)) in devices.into_iter().enumerate() {
        let slot =
            layout::virtio_slot(index).map_err(|cause| unsupported(name.as_str(), cause.to_string()))?;
        let mmio = transport(vm, memory, device, slot)
            .map_err(|cause| failure(&format!("connect the device {name}"), &cause))?;
        registers.push(Registers {
            base: slot.base,
            size: slot.size,
            name,
            mmio,
        });
        slots.push(slot);
    }
    Ok((registers, slots))
}

fn transport(vm: &VmFd, memory: &Memory, device: Box<dyn Device>, slot: Slot) -> io::Result<Mmio> {
    let interrupt = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
    vm.register_irqfd(&interrupt, slot.gsi).map_err(io::Error::from)?;
    // SAFETY: the descriptor is open and given away.
    let interrupt = unsafe { OwnedFd::from_raw_fd(interrupt.into_raw_fd()) };
    let mmio = Mmio::new(device, memory.clone(), interrupt)?;
    for (queue, kick) in (0u32..).zip(mmio.kicks()) {
        let kick = event(kick.as_fd().try_clone_to_owned()?);
        vm.register_ioevent(&kick, &IoEventAddress::Mmio(slot.base + QUEUE_NOTIFY), queue)
            .map_err(io::Error::from)?;
    }
    Ok(mmio)
}

/// A descriptor as KVM's crate wants to see it. KVM keeps the event, so the descriptor may be closed.
fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open and given away.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn processors(
    vm: &VmFd,
    count: u8,
    supported: &Supported,
    entry: &boot::Entry,
) -> Result<Vec<VcpuFd>, LaunchError> {
    (0..count)
        .map(|index| {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(|cause| failure("create a processor", &cause))?;
            let entry = (index == 0).then_some(entry);
            processor::prepare_vcpu(&vcpu, index, count, supported, entry)
                .map_err(|cause| failure("prepare a processor", &cause))?;
            Ok(vcpu)
        })
        .collect()
}
