//! A virtual processor: one thread that runs the guest and answers its exits.
//!
//! ```text
//!            ┌────────────────── exit handled ◄──────────────┐
//!            ▼                                               │
//!  created ─► running in the guest ── port, MMIO ────────────┘
//!            │   ▲   │    │
//!            │   │   │    └─ EAGAIN, ENOMEM (a bounded number in a row): again
//!      kick: │   └───┴─ EINTR: at the gate ── held: its last exit completed, waits ──┐
//!            │                 │  ▲──────────────────── released ────────────────────┘
//!            │                 └─ stop ──► ended
//!            └─ power-off, reset, panic, anything unforeseen ──► ended, with the reason
//! ```
//!
//! What it does for an exit is in [`handle`]; what its registers mean is `arch`'s.

use std::sync::Arc;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{Error, VcpuExit, VcpuFd};

use super::bus::{Bus, Demand};
use super::exits::{Exits, Kind};
use super::gate::{Gate, Passed};
use super::{arch, kick};
use crate::machine::{VcpuReport, VmExit};

/// How often in a row `KVM_RUN` may answer ENOMEM: Linux 6.11 to 6.13 do so once in a while.
const NO_MEMORY_MOST: u32 = 16;

/// What the loop needs of a processor.
pub(super) trait Processor {
    /// Runs the guest until it needs something.
    fn run(&mut self) -> Result<VcpuExit<'_>, Error>;

    /// Finishes the last exit without running the guest: a read's value reaches its register.
    fn complete(&mut self);

    /// A kick ended the last run: nothing of it stays pending.
    fn kicked(&mut self);

    /// What KVM says of the last exit beyond its name.
    fn details(&mut self) -> String;

    /// The registers as text, for a report.
    fn registers(&self) -> String;
}

impl Processor for VcpuFd {
    fn run(&mut self) -> Result<VcpuExit<'_>, Error> {
        Self::run(self)
    }

    fn complete(&mut self) {
        self.set_kvm_immediate_exit(1);
        if let Ok(exit) = Self::run(self) {
            log::error!("a processor that was to stop at once came back with {exit:?}");
        }
        self.set_kvm_immediate_exit(0);
        // So that the guest's watchdogs do not take the time for a stall (KVM api.rst 4.70). A guest that does
        // not use kvm-clock has nothing to be told.
        if let Err(cause) = self.kvmclock_ctrl() {
            log::trace!("the guest does not use kvm-clock: {cause}");
        }
    }

    fn kicked(&mut self) {
        kick::take();
    }

    fn details(&mut self) -> String {
        arch::details(self)
    }

    fn registers(&self) -> String {
        arch::describe(self)
    }
}

/// What all processors of a machine share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) bus: Arc<Bus>,
    pub(super) gate: Arc<Gate>,
    pub(super) exits: Arc<Exits>,
}

/// Runs a processor until it ends. `None` when it was told to.
pub(super) fn run(index: u8, cpu: &mut impl Processor, shared: &Shared) -> Option<VmExit> {
    let mut no_memory = 0;
    loop {
        let outcome = match cpu.run() {
            Ok(exit) => {
                shared.exits.count(Kind::from(&exit));
                handle(exit, &shared.bus)
            }
            Err(error) => match error.errno() {
                libc::EINTR => Outcome::Interrupted,
                libc::EAGAIN => Outcome::Again,
                libc::ENOMEM if no_memory < NO_MEMORY_MOST => Outcome::NoMemory,
                _ => Outcome::Unforeseen(format!("KVM_RUN answers {error}")),
            },
        };
        no_memory = if outcome == Outcome::NoMemory {
            no_memory + 1
        } else {
            0
        };
        match outcome {
            Outcome::Handled => {}
            Outcome::NoMemory | Outcome::Again => shared.exits.count(Kind::Again),
            Outcome::Interrupted => {
                shared.exits.count(Kind::Interrupted);
                cpu.kicked();
                if shared.gate.pass(|| cpu.complete()) == Passed::Stop {
                    return None;
                }
            }
            Outcome::End(exit) => return Some(exit),
            Outcome::Unforeseen(reason) => {
                let reason = reason + &cpu.details();
                return Some(stopped(index, cpu, reason));
            }
        }
    }
}

/// The report of a processor that stopped.
pub(super) fn stopped(index: u8, cpu: &mut impl Processor, reason: String) -> VmExit {
    VmExit::VcpuStopped(Box::new(VcpuReport {
        index,
        reason,
        registers: cpu.registers(),
    }))
}

/// The report of a processor whose thread panicked.
pub(super) fn panicked(index: u8) -> VmExit {
    VmExit::VcpuStopped(Box::new(VcpuReport {
        index,
        reason: "its thread panicked".to_owned(),
        registers: String::new(),
    }))
}

/// What follows from an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Handled,
    Interrupted,
    Again,
    NoMemory,
    End(VmExit),
    Unforeseen(String),
}

/// Does what an exit asks for.
fn handle(exit: VcpuExit<'_>, bus: &Bus) -> Outcome {
    match exit {
        VcpuExit::MmioRead(address, data) => bus.read(address, data),
        VcpuExit::MmioWrite(address, data) => bus.write(address, data),
        VcpuExit::IoIn(port, data) => bus.read_port(port, data),
        VcpuExit::IoOut(port, data) => {
            if let Some(demand) = bus.write_port(port, data) {
                return Outcome::End(demand.into());
            }
        }
        VcpuExit::Intr => return Outcome::Interrupted,
        VcpuExit::Shutdown => return Outcome::Unforeseen(arch::SHUTDOWN.to_owned()),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Outcome::End(VmExit::GuestReset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Outcome::End(VmExit::PowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => return Outcome::End(VmExit::GuestPanic),
        nothing if arch::wants_nothing(&nothing) => {}
        unforeseen => return Outcome::Unforeseen(format!("{unforeseen:?}")),
    }
    Outcome::Handled
}

impl From<Demand> for VmExit {
    fn from(demand: Demand) -> Self {
        match demand {
            Demand::PowerOff => Self::PowerOff,
            Demand::Reset => Self::GuestReset,
            Demand::Panic => Self::GuestPanic,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::thread;

    use super::*;
    use crate::hypervisor::kvm::bus::{PortRange, Ports};

    /// A port that asks for what is written to it, and reads as seven.
    struct Power;

    impl Ports for Power {
        fn read(&mut self, _: u16) -> u8 {
            7
        }

        fn write(&mut self, _: u16, value: u8) -> Option<Demand> {
            (value == 1).then_some(Demand::PowerOff)
        }
    }

    enum Step {
        Exit(VcpuExit<'static>),
        In(u16),
        Error(i32),
    }

    /// A processor that comes back as it was told.
    struct Script {
        steps: VecDeque<Step>,
        data: Vec<u8>,
        log: Vec<&'static str>,
    }

    impl Script {
        fn new(steps: impl IntoIterator<Item = Step>) -> Self {
            Self {
                steps: steps.into_iter().collect(),
                data: vec![0; 2],
                log: Vec::new(),
            }
        }
    }

    impl Processor for Script {
        fn run(&mut self) -> Result<VcpuExit<'_>, Error> {
            match self.steps.pop_front().expect("it is run no further") {
                Step::Exit(exit) => Ok(exit),
                Step::In(port) => Ok(VcpuExit::IoIn(port, &mut self.data)),
                Step::Error(errno) => Err(Error::new(errno)),
            }
        }

        fn complete(&mut self) {
            self.log.push("complete");
        }

        fn kicked(&mut self) {
            self.log.push("kicked");
        }

        fn details(&mut self) -> String {
            " (and so on)".to_owned()
        }

        fn registers(&self) -> String {
            "rip 0x10".to_owned()
        }
    }

    fn shared() -> Shared {
        let range = PortRange {
            first: 0x600,
            count: 1,
            device: Box::new(Power),
        };
        Shared {
            bus: Arc::new(Bus::new(vec![range], Vec::new())),
            gate: Arc::new(Gate::new(1)),
            exits: Arc::new(Exits::default()),
        }
    }

    #[test]
    fn what_the_host_interrupts_goes_on() {
        let shared = shared();
        let mut cpu = Script::new([
            Step::Error(libc::EAGAIN),
            Step::Error(libc::ENOMEM),
            Step::Error(libc::EINTR),
            Step::In(0x600),
            Step::Exit(VcpuExit::IoOut(0x600, &[0])),
            Step::Exit(VcpuExit::IoOut(0x600, &[1])),
        ]);
        assert_eq!(run(0, &mut cpu, &shared), Some(VmExit::PowerOff));
        assert_eq!(cpu.data, [7, 7]);
        assert_eq!(cpu.log, ["kicked"]);
        let counts = [
            ("again", 2),
            ("interrupted", 1),
            ("port read", 1),
            ("port write", 2),
        ];
        let counts = counts.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(shared.exits.by_name(), counts.into());
    }

    #[test]
    fn memory_that_stays_short_ends_the_machine_and_not_the_monitor() {
        let mut cpu = Script::new((0..=NO_MEMORY_MOST).map(|_| Step::Error(libc::ENOMEM)));
        let Some(VmExit::VcpuStopped(report)) = run(3, &mut cpu, &shared()) else {
            panic!("it ends")
        };
        assert_eq!(report.index, 3);
        assert!(report.reason.contains("Cannot allocate memory"), "{report}");
    }

    #[test]
    fn the_guest_ends_in_every_known_way() {
        for (exit, expected) in [
            (
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, &[]),
                VmExit::GuestReset,
            ),
            (
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, &[]),
                VmExit::PowerOff,
            ),
            (
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, &[]),
                VmExit::GuestPanic,
            ),
        ] {
            assert_eq!(
                run(0, &mut Script::new([Step::Exit(exit)]), &shared()),
                Some(expected)
            );
        }
    }

    #[test]
    fn what_nobody_foresaw_is_reported_with_the_registers() {
        let mut cpu = Script::new([Step::Exit(VcpuExit::FailEntry(0x8000_0021, 0))]);
        let Some(VmExit::VcpuStopped(report)) = run(1, &mut cpu, &shared()) else {
            panic!("it ends")
        };
        assert_eq!(
            report.to_string(),
            "virtual processor 1 stopped: FailEntry(2147483681, 0) (and so on)\nrip 0x10"
        );
        let mut cpu = Script::new([Step::Exit(VcpuExit::Shutdown)]);
        let Some(VmExit::VcpuStopped(report)) = run(1, &mut cpu, &shared()) else {
            panic!("it ends")
        };
        assert_eq!(report.reason, "a triple fault (and so on)");
    }

    #[test]
    fn held_it_completes_its_exit_and_waits() {
        let shared = shared();
        shared.gate.hold();
        let running = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut cpu = Script::new([
                    Step::Error(libc::EINTR),
                    Step::Exit(VcpuExit::Intr),
                    Step::Exit(VcpuExit::IoOut(0x600, &[1])),
                ]);
                (run(0, &mut cpu, &shared), cpu.log)
            }
        });
        shared.gate.held();
        shared.gate.release();
        let (end, log) = running.join().unwrap();
        assert_eq!(end, Some(VmExit::PowerOff));
        assert_eq!(log[..2], ["kicked", "complete"]);
    }

    #[test]
    fn told_to_stop_it_ends_without_a_reason() {
        let shared = shared();
        shared.gate.stop();
        assert_eq!(
            run(0, &mut Script::new([Step::Error(libc::EINTR)]), &shared),
            None
        );
    }
}
