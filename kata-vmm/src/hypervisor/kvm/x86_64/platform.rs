//! What a PC has beside its processors and virtio: a serial port, a clock chip, and the ports by which a
//! guest ends or says that it panicked.
//!
//! Owns those devices. The serial port only writes: nothing is ever typed into it. The clock chip tells the
//! host's time and takes no settings: a kernel reads it once, and waits a second for one that is not there.
//! It must not know who keeps what the guest writes.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_ioctls::{Cap, VmFd};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::layout::{
    COM1_GSI, COM1_PORT, IDENTITY_MAP, KEYBOARD_PORT, KEYBOARD_RESET, PANIC_PORT, POWER_OFF, RESET,
    RESET_PORT, RTC_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, TSS,
};
use crate::hypervisor::kvm::bus::{Demand, PortRange, Ports};

/// What KVM must be able to do for this architecture.
pub(in crate::hypervisor::kvm) const CAPABILITIES: [(Cap, &str); 2] =
    [(Cap::SetTssAddr, "a TSS address"), (Cap::ExtCpuid, "CPUID")];

/// Ports of a 16550.
const SERIAL_PORTS: u16 = 8;

/// The guest kernel has panicked (QEMU docs/specs/pvpanic, bit 0).
const PANICKED: u8 = 1;

/// All of them. `console` takes what the guest writes to the serial port and must not wait; `interrupt` is
/// the port's.
pub(in crate::hypervisor::kvm) fn ports(
    console: impl Write + Send + 'static,
    interrupt: EventFd,
) -> Vec<PortRange> {
    let serial = Com1(Serial::new(Interrupt(interrupt), console));
    let range = |first, count, device| PortRange { first, count, device };
    vec![
        range(COM1_PORT, SERIAL_PORTS, Box::new(serial)),
        range(RTC_PORT, 2, Box::<Rtc>::default()),
        range(SLEEP_CONTROL_PORT, 1, port(0, POWER_OFF, Demand::PowerOff)),
        range(SLEEP_STATUS_PORT, 1, Box::new(Silent)),
        range(RESET_PORT, 1, port(0, RESET, Demand::Reset)),
        range(KEYBOARD_PORT, 1, port(0, KEYBOARD_RESET, Demand::Reset)),
        range(PANIC_PORT, 1, port(PANICKED, PANICKED, Demand::Panic)),
    ]
}

/// KVM's PIC, IO-APIC and local APICs; the processors come after them.
pub(in crate::hypervisor::kvm) fn interrupt_controllers(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS)?;
    vm.create_irq_chip()
}

/// The serial port's interrupt: what is written to the event raises it.
pub(in crate::hypervisor::kvm) fn com1_interrupt(vm: &VmFd) -> io::Result<EventFd> {
    let interrupt = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
    vm.register_irqfd(&interrupt, COM1_GSI)?;
    Ok(interrupt)
}

/// A port that reads as `reads` and makes `demand` when `trigger` is written.
struct Switch {
    reads: u8,
    trigger: u8,
    demand: Demand,
}

fn port(reads: u8, trigger: u8, demand: Demand) -> Box<Switch> {
    Box::new(Switch {
        reads,
        trigger,
        demand,
    })
}

impl Ports for Switch {
    fn read(&mut self, _: u16) -> u8 {
        self.reads
    }

    fn write(&mut self, _: u16, value: u8) -> Option<Demand> {
        (value == self.trigger).then_some(self.demand)
    }
}

/// A port that reads as zero.
struct Silent;

impl Ports for Silent {
    fn read(&mut self, _: u16) -> u8 {
        0
    }

    fn write(&mut self, _: u16, _: u8) -> Option<Demand> {
        None
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

struct Com1<W: Write>(Serial<Interrupt, vm_superio::serial::NoEvents, W>);

impl<W: Write + Send> Ports for Com1<W> {
    fn read(&mut self, offset: u16) -> u8 {
        self.0.read(u8::try_from(offset).unwrap_or_default())
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Demand> {
        if let Err(error) = self.0.write(u8::try_from(offset).unwrap_or_default(), value) {
            log::debug!("the guest's serial port: {error:?}");
        }
        None
    }
}

/// The clock of a PC, an MC146818: time of day in BCD, no alarms.
#[derive(Debug, Default)]
struct Rtc {
    index: u8,
}

/// Registers of the chip (Motorola MC146818A, table "address map"; the century is a PC's addition).
mod register {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const DAY_OF_WEEK: u8 = 0x06;
    pub(super) const DAY_OF_MONTH: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register A: a divider of 32.768 kHz, and never "update in progress".
const A_RUNNING: u8 = 0x26;
/// Register B: 24 hours, BCD.
const B_24_HOURS: u8 = 0x02;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;

impl Ports for Rtc {
    fn read(&mut self, offset: u16) -> u8 {
        if offset == 0 {
            return 0xff;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        value(self.index, now.as_secs())
    }

    fn write(&mut self, offset: u16, value: u8) -> Option<Demand> {
        if offset == 0 {
            // The highest bit masks NMIs.
            self.index = value & 0x7f;
        }
        None
    }
}

/// What a register shows at a Unix time.
fn value(index: u8, seconds: u64) -> u8 {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let number = match index {
        register::SECONDS => seconds % 60,
        register::MINUTES => seconds / 60 % 60,
        register::HOURS => seconds / 3600 % 24,
        // 1970 began on a Thursday, and Sunday is 1.
        register::DAY_OF_WEEK => (days + 4) % 7 + 1,
        register::DAY_OF_MONTH => day,
        register::MONTH => month,
        register::YEAR => year % 100,
        register::CENTURY => year / 100,
        register::A => return A_RUNNING,
        register::B => return B_24_HOURS,
        register::D => return D_VALID,
        _ => return 0,
    };
    bcd(number)
}

fn bcd(number: u64) -> u8 {
    u8::try_from(number / 10 * 16 + number % 10).unwrap_or_default()
}

/// Year, month and day of a day since 1970, in the Gregorian calendar counted in eras of 400 years that
/// begin on 1 March, so that a leap day is an era's last.
fn date(days: u64) -> (u64, u64, u64) {
    /// Days from 1 March of the year 0 to 1 January 1970.
    const EPOCH: u64 = 719_468;
    const ERA: u64 = 146_097;
    let shifted = days + EPOCH;
    let (era, day_of_era) = (shifted / ERA, shifted % ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months have 153 days.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::hypervisor::kvm::bus::Bus;

    #[derive(Clone, Default)]
    struct Console(Arc<Mutex<Vec<u8>>>);

    impl Write for Console {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn bus() -> (Bus, Console, EventFd) {
        let (console, interrupt) = (Console::default(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let ports = ports(console.clone(), interrupt.try_clone().unwrap());
        (Bus::new(ports, Vec::new()), console, interrupt)
    }

    fn read(bus: &Bus, port: u16) -> u8 {
        let mut data = [0];
        bus.read_port(port, &mut data);
        data[0]
    }

    #[test]
    fn the_serial_port_writes_and_interrupts() {
        let (bus, console, interrupt) = bus();
        // Interrupts for "transmitter empty".
        bus.write_port(COM1_PORT + 1, &[2]);
        bus.write_port(COM1_PORT, b"h");
        bus.write_port(COM1_PORT, b"i");
        assert_eq!(*console.0.lock().unwrap(), b"hi");
        assert!(interrupt.read().unwrap() >= 1);
        // Line status: ready for more.
        assert_eq!(read(&bus, COM1_PORT + 5) & 0x60, 0x60);
    }

    #[test]
    fn a_guest_ends_in_four_ways_and_in_no_other() {
        let (bus, ..) = bus();
        for (port, value, demand) in [
            (SLEEP_CONTROL_PORT, POWER_OFF, Demand::PowerOff),
            (RESET_PORT, RESET, Demand::Reset),
            (KEYBOARD_PORT, KEYBOARD_RESET, Demand::Reset),
            (PANIC_PORT, PANICKED, Demand::Panic),
        ] {
            for other in (0..=u8::MAX).filter(|other| *other != value) {
                assert_eq!(bus.write_port(port, &[other]), None);
            }
            assert_eq!(bus.write_port(port, &[value]), Some(demand));
        }
        assert_eq!(bus.write_port(SLEEP_STATUS_PORT, &[0xff]), None);
        assert_eq!(read(&bus, SLEEP_STATUS_PORT), 0);
        assert_eq!(read(&bus, PANIC_PORT), PANICKED, "what it understands");
        assert_eq!(read(&bus, KEYBOARD_PORT), 0, "ready");
    }

    #[test]
    fn the_clock_shows_the_date_as_kernels_read_it() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 5"),
            (951_782_399, "2000-02-28 23:59:59 2"),
            (951_782_400, "2000-02-29 00:00:00 3"),
            (951_868_800, "2000-03-01 00:00:00 4"),
            (1_795_437_296, "2026-11-23 12:34:56 2"),
            (4_107_542_400, "2100-03-01 00:00:00 2"),
        ] {
            let at = |index| value(index, seconds);
            let shown = format!(
                "{:02x}{:02x}-{:02x}-{:02x} {:02x}:{:02x}:{:02x} {}",
                at(register::CENTURY),
                at(register::YEAR),
                at(register::MONTH),
                at(register::DAY_OF_MONTH),
                at(register::HOURS),
                at(register::MINUTES),
                at(register::SECONDS),
                at(register::DAY_OF_WEEK),
            );
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn the_clock_is_never_in_the_middle_of_an_update() {
        let (bus, ..) = bus();
        bus.write_port(RTC_PORT, &[0x80 | register::A]);
        assert_eq!(read(&bus, RTC_PORT + 1), A_RUNNING);
        bus.write_port(RTC_PORT, &[register::D]);
        assert_eq!(read(&bus, RTC_PORT + 1), D_VALID);
        bus.write_port(RTC_PORT, &[register::YEAR]);
        assert!(read(&bus, RTC_PORT + 1) >= 0x26);
    }
}
