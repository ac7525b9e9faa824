//! Machines whose guest is a few instructions, straight on `/dev/kvm`: they run on every kind of KVM.

use std::collections::VecDeque;
use std::io::Write as _;
use std::ops::{Deref, DerefMut};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kata_virtio::rng::Rng;
use kvm_ioctls::{Cap, Kvm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::{layout, platform};
use crate::hypervisor::kvm::bus::{Bus, Demand, PortRange, Ports};
use crate::hypervisor::kvm::machine::{Console, Microvm, Parts};
use crate::hypervisor::kvm::memory::{Contents, Ram};
use crate::hypervisor::kvm::{assemble, create_vm};
use crate::hypervisor::shelf::Shelf;
use crate::hypervisor::sockets::Sockets;
use crate::hypervisor::{Occurrence, Vm};
use crate::machine::VmExit;

const DEADLINE: Duration = Duration::from_secs(60);
const CODE: u64 = 0x1000;
const MEMORY_BYTES: u64 = 0x1_0000;

/// A machine of so many processors, the first of which is in real mode at `code`, with its data segment over
/// the first virtio device, a rng. `None` where there is no KVM, which is said.
fn machine(name: &str, processors: u8, code: &[u8]) -> Option<Tiny> {
    let Ok(kvm) = Kvm::new() else {
        assert!(std::env::var_os("CI").is_none(), "SKIPPED {name}: no /dev/kvm");
        println!("SKIPPED {name}: /dev/kvm cannot be opened");
        return None;
    };
    assert!(kvm.check_extension(Cap::Irqchip));
    let vm = create_vm(&kvm).unwrap();
    let ram = Ram::new(&[(GuestAddress(0), MEMORY_BYTES)], Contents::Fresh).unwrap();
    ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
    ram.attach(&vm).unwrap();
    platform::interrupt_controllers(&vm).unwrap();
    let (sockets, _) = Sockets::new(3, &[]).unwrap();
    let rng = Box::new(Rng::new().unwrap());
    let (registers, _) = assemble::attach(&vm, ram.memory(), vec![("rng".to_owned(), rng)]).unwrap();
    let console = Console::default();
    let interrupt = platform::com1_interrupt(&vm).unwrap();
    let mut ports = platform::ports(console.clone(), interrupt);
    ports.push(PortRange {
        first: PANICKING_PORT,
        count: 1,
        device: Box::new(Panicking),
    });
    let bus = Bus::new(ports, registers);
    let processors: Vec<_> = (0..processors)
        .map(|index| vm.create_vcpu(index.into()).unwrap())
        .collect();
    let mut sregs = processors[0].get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    sregs.ds.base = layout::virtio_slot(0).unwrap().base;
    processors[0].set_sregs(&sregs).unwrap();
    let mut regs = processors[0].get_regs().unwrap();
    regs.rip = CODE;
    processors[0].set_regs(&regs).unwrap();
    let parts = Parts {
        vm,
        ram,
        processors,
        bus,
        sockets,
        shelf: Shelf::default(),
        console,
        start: Instant::now(),
    };
    Some(Tiny {
        vm: Microvm::start(parts).unwrap(),
        pending: VecDeque::new(),
    })
}

/// A port whose device panics.
struct Panicking;

const PANICKING_PORT: u16 = 0x900;

impl Ports for Panicking {
    fn read(&mut self, _: u16) -> u8 {
        panic!("as it is there for")
    }

    fn write(&mut self, _: u16, _: u8) -> Option<Demand> {
        panic!("as it is there for")
    }
}

/// A machine, and what it did beyond what was asked for: a guest of a few instructions can end before anybody
/// has looked.
struct Tiny {
    vm: Microvm,
    pending: VecDeque<Occurrence>,
}

impl Deref for Tiny {
    type Target = Microvm;

    fn deref(&self) -> &Microvm {
        &self.vm
    }
}

impl DerefMut for Tiny {
    fn deref_mut(&mut self) -> &mut Microvm {
        &mut self.vm
    }
}

/// What the machine does next.
fn next(vm: &mut Tiny) -> Occurrence {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let occurrences = vm.advance();
        vm.pending.extend(occurrences);
        if let Some(occurrence) = vm.pending.pop_front() {
            return occurrence;
        }
        let left = deadline
            .checked_duration_since(Instant::now())
            .expect("something happens");
        let sources = vm.sources();
        let mut fds: Vec<_> = sources
            .into_iter()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
    }
}

fn end_of(vm: &mut Tiny) -> VmExit {
    assert!(matches!(next(vm), Occurrence::Running(_)));
    match next(vm) {
        Occurrence::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(code: &mut Vec<u8>, port: u16, value: u8) {
    code.push(0xba);
    code.extend(port.to_le_bytes());
    code.extend([0xb0, value, 0xee]);
}

const HALT: u8 = 0xf4;
/// `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];

#[test]
fn a_guest_writes_its_console_and_powers_off() {
    let mut code = Vec::new();
    for byte in *b"hi\n" {
        out(&mut code, layout::COM1_PORT, byte);
    }
    out(&mut code, layout::SLEEP_CONTROL_PORT, layout::POWER_OFF);
    code.push(HALT);
    let Some(mut vm) = machine("console", 1, &code) else {
        return;
    };
    assert_eq!(end_of(&mut vm), VmExit::PowerOff);
    assert_eq!(vm.console_tail(), "hi\n");
}

#[test]
fn a_panic_is_told_from_a_reset() {
    for (port, value, expected) in [
        (layout::RESET_PORT, layout::RESET, VmExit::GuestReset),
        (layout::KEYBOARD_PORT, layout::KEYBOARD_RESET, VmExit::GuestReset),
        (layout::PANIC_PORT, 1, VmExit::GuestPanic),
    ] {
        let mut code = Vec::new();
        out(&mut code, port, value);
        let Some(mut vm) = machine("panic", 1, &code) else {
            return;
        };
        assert_eq!(end_of(&mut vm), expected);
    }
}

#[test]
fn a_processor_whose_thread_panics_ends_the_machine() {
    let mut code = Vec::new();
    out(&mut code, PANICKING_PORT, 0);
    let Some(mut vm) = machine("thread panics", 2, &code) else {
        return;
    };
    let VmExit::VcpuStopped(report) = end_of(&mut vm) else {
        panic!("it cannot go on")
    };
    assert_eq!(report.reason, "its thread panicked");
    end(vm);
}

#[test]
fn where_no_instruction_is_the_machine_ends_with_its_registers() {
    // jmp far 2000:0000, where no memory is.
    let Some(mut vm) = machine("stopped", 1, &[0xea, 0x00, 0x00, 0x00, 0x20]) else {
        return;
    };
    let VmExit::VcpuStopped(report) = end_of(&mut vm) else {
        panic!("it cannot go on")
    };
    assert_eq!(report.index, 0);
    assert!(report.registers.contains("cs=0x2000"), "{report}");
}

#[test]
fn a_guest_that_never_leaves_is_held_goes_on_and_is_ended() {
    let Some(mut vm) = machine("held", 2, &SPIN) else {
        return;
    };
    assert!(matches!(next(&mut vm), Occurrence::Running(_)));
    for paused in [true, true, false, false, true, false] {
        vm.pause(paused).unwrap();
        assert!(matches!(next(&mut vm), Occurrence::Paused(now) if now == paused));
        assert_eq!(vm.info().paused, paused);
        assert!(!restless(&vm), "or the control loop would never rest");
    }
    let info = vm.info();
    assert!(info.exits["interrupted"] >= 2, "{info:?}");
    // The page of its code.
    assert_eq!(info.resident_bytes, Some(4096));
    assert_eq!(info.devices.len(), 1);
    end(vm);
}

/// Ends the machine, in time.
fn end(vm: Tiny) {
    let (ended, waiting) = channel();
    std::thread::spawn(move || {
        drop(vm);
        ended.send(()).unwrap();
    });
    waiting.recv_timeout(DEADLINE).expect("it ends");
}

/// Whether something waits to be taken in.
fn restless(vm: &Microvm) -> bool {
    let mut fds: Vec<_> = vm
        .sources()
        .into_iter()
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn a_held_machine_can_be_ended() {
    let Some(mut vm) = machine("ended", 1, &SPIN) else {
        return;
    };
    vm.pause(true).unwrap();
    end(vm);
}

#[test]
fn registers_of_a_device_are_read_and_kicks_do_not_come_back() {
    // mov eax, [0]: the magic value of virtio-mmio, byte by byte to the console.
    let mut code = vec![0x66, 0xa1, 0, 0];
    for _ in 0..4 {
        // mov dx, com1; out dx, al; shr eax, 8
        code.push(0xba);
        code.extend(layout::COM1_PORT.to_le_bytes());
        code.extend([0xee, 0x66, 0xc1, 0xe8, 8]);
    }
    // mov dword [0x50], 0: a kick of queue 0, which is an ioeventfd.
    code.extend([0x66, 0xc7, 0x06, 0x50, 0, 0, 0, 0, 0]);
    out(&mut code, layout::SLEEP_CONTROL_PORT, layout::POWER_OFF);
    let Some(mut vm) = machine("registers", 1, &code) else {
        return;
    };
    assert!(matches!(next(&mut vm), Occurrence::Running(_)));
    // Before its end, while the counts are there.
    let start = Instant::now();
    let exits = loop {
        let exits = vm.info().exits;
        if exits.get("port write") >= Some(&5) {
            break exits;
        }
        assert!(start.elapsed() < DEADLINE, "{exits:?}");
        std::thread::yield_now();
    };
    assert!(matches!(next(&mut vm), Occurrence::Exited(VmExit::PowerOff)));
    assert_eq!(vm.console_tail(), "virt");
    assert_eq!(
        (exits.get("mmio read"), exits.get("mmio write")),
        (Some(&1), None)
    );
}

#[test]
fn the_console_keeps_its_end() {
    let mut console = Console::default();
    console.write_all(&vec![b'x'; 1 << 20]).unwrap();
    console.write_all(b"\nlast\n").unwrap();
    assert!(console.text().ends_with("last\n"));
}
