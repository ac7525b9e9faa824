//! Which device answers at which port and address.
//!
//! Immutable once the machine runs; each device has a lock of its own, so two processors only wait for each
//! other at the same device. What nobody answers reads as all ones and takes every write, as on a PC.
//! It must not know what the devices are.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kata_virtio::transport::Mmio;

/// What a write to a device of the platform asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// To be switched off.
    PowerOff,
    /// To be reset.
    Reset,
    /// To be told that the guest kernel panicked.
    Panic,
}

/// A device of the platform, behind I/O ports of one byte each.
///
/// An access of several bytes is taken for a string instruction's: each byte is the same port's. No driver of
/// these devices makes a wider one.
pub(super) trait Ports: Send {
    /// Reads the port at `offset` from the first.
    fn read(&mut self, offset: u16) -> u8;

    /// Writes it.
    fn write(&mut self, offset: u16, value: u8) -> Option<Demand>;
}

/// Ports from `first` on, `count` of them.
pub(super) struct PortRange {
    pub(super) first: u16,
    pub(super) count: u16,
    pub(super) device: Box<dyn Ports>,
}

/// A virtio device's registers.
pub(super) struct Registers {
    /// Guest-physical address.
    pub(super) base: u64,
    /// Bytes.
    pub(super) size: u64,
    /// For messages and figures.
    pub(super) name: String,
    /// The transport.
    pub(super) mmio: Mmio,
}

/// See the module.
pub(super) struct Bus {
    ports: Vec<Place<u16, Box<dyn Ports>>>,
    registers: Vec<Place<u64, Registers>>,
}

/// A device with where it answers.
struct Place<A, D> {
    first: A,
    count: A,
    device: Mutex<D>,
}

impl Bus {
    /// A bus with these devices.
    pub(super) fn new(ports: Vec<PortRange>, registers: Vec<Registers>) -> Self {
        Self {
            ports: ports
                .into_iter()
                .map(|range| Place {
                    first: range.first,
                    count: range.count,
                    device: Mutex::new(range.device),
                })
                .collect(),
            registers: registers
                .into_iter()
                .map(|registers| Place {
                    first: registers.base,
                    count: registers.size,
                    device: Mutex::new(registers),
                })
                .collect(),
        }
    }

    /// A read at `port`, byte by byte.
    pub(super) fn read_port(&self, port: u16, data: &mut [u8]) {
        match self.port(port) {
            Some((offset, mut device)) => data.fill_with(|| device.read(offset)),
            None => data.fill(0xff),
        }
    }

    /// A write at `port`, byte by byte; what the first byte that demands something demands.
    pub(super) fn write_port(&self, port: u16, data: &[u8]) -> Option<Demand> {
        let (offset, mut device) = self.port(port)?;
        data.iter().find_map(|&byte| device.write(offset, byte))
    }

    /// A read of a device's registers.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) {
        match self.registers(address) {
            Some((offset, mut registers)) => registers.mmio.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to a device's registers.
    pub(super) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, mut registers)) = self.registers(address) {
            registers.mmio.write(offset, data);
        }
    }

    /// Every virtio device by turns.
    pub(super) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Registers>> {
        self.devices().map(lock)
    }

    /// Every virtio device.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Mutex<Registers>> {
        self.registers.iter().map(|place| &place.device)
    }

    /// The same, when the processors are gone.
    pub(super) fn into_devices(self) -> impl Iterator<Item = Mutex<Registers>> {
        self.registers.into_iter().map(|place| place.device)
    }

    fn port(&self, port: u16) -> Option<(u16, MutexGuard<'_, Box<dyn Ports>>)> {
        self.ports.iter().find_map(|place| {
            let offset = port.checked_sub(place.first)?;
            (offset < place.count).then(|| (offset, lock(&place.device)))
        })
    }

    fn registers(&self, address: u64) -> Option<(u64, MutexGuard<'_, Registers>)> {
        self.registers.iter().find_map(|place| {
            let offset = address.checked_sub(place.first)?;
            (offset < place.count).then(|| (offset, lock(&place.device)))
        })
    }
}

/// A device that panicked under its lock is as it was then: its own transport says what follows.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last byte and where.
    struct Cell([u8; 2]);

    impl Ports for Cell {
        fn read(&mut self, offset: u16) -> u8 {
            self.0[usize::from(offset)]
        }

        fn write(&mut self, offset: u16, value: u8) -> Option<Demand> {
            self.0[usize::from(offset)] = value;
            (value == 9).then_some(Demand::Reset)
        }
    }

    #[test]
    fn ports_are_bytes_and_nobody_is_all_ones() {
        let range = PortRange {
            first: 0x10,
            count: 2,
            device: Box::new(Cell([0; 2])),
        };
        let bus = Bus::new(vec![range], Vec::new());
        assert_eq!(bus.write_port(0x11, &[1, 2]), None);
        let mut wide = [0; 4];
        bus.read_port(0x11, &mut wide);
        assert_eq!(wide, [2; 4]);
        bus.read_port(0x12, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        assert_eq!(bus.write_port(0x10, &[9]), Some(Demand::Reset));
        assert_eq!(bus.write_port(0xffff, &[9]), None);
        bus.read(0xd000_0000, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        bus.write(u64::MAX, &wide);
        bus.read_port(0x10, &mut []);
    }
}
