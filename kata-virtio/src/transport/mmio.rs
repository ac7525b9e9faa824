//! Registers of virtio-mmio, version 2 (VIRTIO 1.2 §4.2.2): decoding, and nothing else.
//!
//! Knows offsets and widths; the rules behind them are `front`'s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::front::Front;
use super::ring::Area;
use super::state::State;
use crate::{Device, Kind, Memory, Meter};

/// "virt" (§4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "kata".
const VENDOR: u32 = 0x6174_616b;
/// Length and base of a shared memory region that does not exist (§4.2.2, SHMLenLow).
const NO_REGION: u32 = u32::MAX;

/// Bytes of the registers before the configuration space (§4.2.2, Config).
const CONFIG: u64 = 0x100;

/// Registers by offset (§4.2.2, table 4.1).
mod at {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE: u64 = 0x008;
    pub(super) const VENDOR: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(super) const QUEUE_SELECT: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub(super) const QUEUE_DESCRIPTORS_UPPER: u64 = 0x084;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_UPPER: u64 = 0x094;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_UPPER: u64 = 0x0a4;
    pub(super) const REGION_SELECT: u64 = 0x0ac;
    pub(super) const REGION_LENGTH: u64 = 0x0b0;
    pub(super) const REGION_LENGTH_UPPER: u64 = 0x0b4;
    pub(super) const REGION_BASE: u64 = 0x0b8;
    pub(super) const REGION_BASE_UPPER: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
}

/// virtio-mmio in front of one device: 4 KiB of registers at most, an interrupt, and an event for each
/// queue's kicks.
///
/// The device's thread runs while the driver is ready and the transport is not paused. Dropping stops it;
/// what the guest had sent is given to slow hosts for at most two seconds.
pub struct Mmio {
    front: Front,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
}

impl Mmio {
    /// Puts the transport in front of `device`. `interrupt` is an eventfd that raises the device's
    /// edge-triggered interrupt in the guest.
    ///
    /// # Errors
    /// When the process has no descriptors left, or the device has more than 64 queues or queues of a
    /// size that is no power of two.
    pub fn new(device: Box<dyn Device>, memory: Memory, interrupt: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            front: Front::new(device, memory, interrupt)?,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
        })
    }

    /// For every queue the eventfd of its kicks: written for a 32-bit write of the queue's number to
    /// QueueNotify (offset 0x50), by whoever catches it first. Nobody but the device's thread may read it.
    #[must_use]
    pub fn kicks(&self) -> Vec<BorrowedFd<'_>> {
        self.front.kicks().iter().map(AsFd::as_fd).collect()
    }

    /// The driver reads `data.len()` bytes at `offset`. What cannot be read is zeroes.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.read_config(offset, data);
        }
        match (<&mut [u8; 4]>::try_from(&mut *data), self.register(offset)) {
            (Ok(data), Some(value)) => *data = value.to_le_bytes(),
            _ => self.front.refuse(&format_args!(
                "no register is read by {} bytes at {offset:#x}",
                data.len()
            )),
        }
    }

    /// The driver writes `data` at `offset`. What cannot be written stays.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.write_config(offset, data);
        }
        let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        let written = value.is_ok_and(|value| self.set_register(offset, value));
        if !written {
            self.front.refuse(&format_args!(
                "no register is written by {} bytes at {offset:#x}",
                data.len()
            ));
        }
    }

    /// Stops the device's thread, once what is in flight is answered: the device and its queues rest in
    /// the transport. What the guest sees stays as it is; its kicks wait.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the host does not answer within five seconds: the device rests
    /// all the same, with requests in flight. Any other when the thread has panicked: the device is lost.
    pub fn pause(&mut self) -> io::Result<()> {
        self.front.pause()
    }

    /// Serves the device again, if its driver is ready.
    ///
    /// # Errors
    /// When the thread cannot be started; the device stays paused in effect, and this can be tried again.
    pub fn resume(&mut self) -> io::Result<()> {
        self.front.resume()
    }

    /// The device's type.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.front.kind()
    }

    /// The device's figures.
    #[must_use]
    pub fn meter(&self) -> Arc<dyn Meter> {
        self.front.meter()
    }

    /// The transport's own figures by name, in a fixed order: counts since it was made.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("interrupts", self.front.board().raised()),
            ("resets", self.front.resets()),
            ("accesses_refused", self.front.refused()),
        ]
    }

    /// Whether the device does nothing until its driver resets it, or for good when its thread panicked.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.front.is_broken()
    }

    /// Everything that the driver has said and was told. A device that is being served stops for a
    /// moment.
    pub fn state(&mut self) -> State {
        let queues = self.front.ring_states();
        State {
            device: self.kind() as u32,
            status: self.front.status().bits(),
            features: self.front.accepted(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            interrupt_status: self.front.board().pending(),
            config_generation: self.front.board().config().generation,
            queues,
        }
    }

    fn register(&self, offset: u64) -> Option<u32> {
        let ring = self.front.ring(self.queue_select);
        Some(match offset {
            at::MAGIC => MAGIC,
            at::VERSION => VERSION,
            at::DEVICE => self.kind() as u32,
            at::VENDOR => VENDOR,
            at::DEVICE_FEATURES => half(self.front.offered(), self.device_features_select),
            at::QUEUE_SIZE_MAX => ring.map_or(0, |ring| ring.max_size.into()),
            at::QUEUE_READY => ring.is_some_and(|ring| ring.ready).into(),
            at::INTERRUPT_STATUS => self.front.board().pending(),
            at::STATUS => self.front.status().bits(),
            at::REGION_LENGTH | at::REGION_LENGTH_UPPER | at::REGION_BASE | at::REGION_BASE_UPPER => {
                NO_REGION
            }
            at::CONFIG_GENERATION => self.front.board().config().generation,
            _ => return None,
        })
    }

    /// Returns whether there is such a register to write.
    fn set_register(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            at::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            at::DRIVER_FEATURES => self.accept_features(value),
            at::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            at::QUEUE_SELECT => self.queue_select = value,
            at::QUEUE_SIZE => self.resize(value),
            at::QUEUE_READY => self.set_ready(value),
            at::QUEUE_NOTIFY => self.front.kick(value),
            at::INTERRUPT_ACK => self.front.board().acknowledge(value),
            at::STATUS => self.set_status(value),
            at::QUEUE_DESCRIPTORS => self.place(Area::Descriptors, false, value),
            at::QUEUE_DESCRIPTORS_UPPER => self.place(Area::Descriptors, true, value),
            at::QUEUE_DRIVER => self.place(Area::Driver, false, value),
            at::QUEUE_DRIVER_UPPER => self.place(Area::Driver, true, value),
            at::QUEUE_DEVICE => self.place(Area::Device, false, value),
            at::QUEUE_DEVICE_UPPER => self.place(Area::Device, true, value),
            // There are no regions to choose from.
            at::REGION_SELECT => {}
            _ => return false,
        }
        true
    }

    fn accept_features(&mut self, value: u32) {
        match self.driver_features_select {
            select @ (0 | 1) => self.front.accept_features(select == 1, value),
            // Linux writes words that do not exist as zero.
            _ if value == 0 => {}
            select => self
                .front
                .refuse(&format_args!("features {value:#x} in word {select} do not exist")),
        }
    }

    fn resize(&mut self, value: u32) {
        let index = self.queue_select;
        let Some(ring) = self.front.open_ring(index) else {
            return;
        };
        match ring.accepts(value) {
            Some(size) => ring.size = size,
            None => self
                .front
                .refuse(&format_args!("queue {index} cannot have {value} entries")),
        }
    }

    fn set_ready(&mut self, value: u32) {
        match value {
            0 | 1 => self.front.set_ready(self.queue_select, value == 1),
            _ => self.front.refuse(&format_args!("QueueReady is never {value:#x}")),
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.device_features_select = 0;
            self.driver_features_select = 0;
            self.queue_select = 0;
        }
        self.front.set_status(value);
    }

    fn place(&mut self, area: Area, upper: bool, value: u32) {
        if let Some(ring) = self.front.open_ring(self.queue_select) {
            ring.place(area, upper, value);
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = data.len();
        // One lock for both: the worker may change the length.
        let found = {
            let config = self.front.board().config();
            let field = config_range(offset, bytes, config.bytes.len()).map(|range| &config.bytes[range]);
            field.map(|field| data.copy_from_slice(field)).is_some()
        };
        if !found {
            self.refuse_config(offset, bytes);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let len = self.front.board().config().bytes.len();
        match config_range(offset, data.len(), len) {
            Some(range) => self.front.write_config(range.start, data),
            None => self.refuse_config(offset, data.len()),
        }
    }

    fn refuse_config(&mut self, offset: u64, bytes: usize) {
        self.front
            .refuse(&format_args!("no configuration has {bytes} bytes at {offset:#x}"));
    }
}

/// Where an access of the driver lies in a configuration space of `len` bytes; its width is that of a
/// field (§4.2.2.2).
fn config_range(offset: u64, bytes: usize, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(bytes)?;
    (matches!(bytes, 1 | 2 | 4 | 8) && end <= len).then_some(start..end)
}

/// 32 of 64 bits; there are no more than two halves.
fn half(word: u64, select: u32) -> u32 {
    let half = match select {
        0 => word & u64::from(u32::MAX),
        1 => word >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or_default()
}

impl std::fmt::Debug for Mmio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mmio")
            .field("kind", &self.kind())
            .field("status", &self.front.status())
            .finish_non_exhaustive()
    }
}
