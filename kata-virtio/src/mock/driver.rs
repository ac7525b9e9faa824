//! A guest's driver in front of the registers of virtio-mmio (VIRTIO 1.2 §3.1.1, §4.2.3), for any device.
//!
//! [`Registers`] knows registers and the interrupt, [`Driver`] adds memory and queues of its own. Every
//! register can also be written on its own, in any order: so do hostile drivers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::ring::DriverQueue;
use super::rings::Rings;
use crate::transport::Mmio;
use crate::{Device, Memory};

/// How long an interrupt is waited for.
const DEADLINE: Duration = Duration::from_secs(20);

const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
/// Descriptor table, available ring and used ring; the upper half follows each.
const QUEUE_AREAS: [u64; 3] = [0x080, 0x090, 0x0a0];
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// Status: the guest has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Status: the guest knows how to drive it.
pub const DRIVER: u32 = 2;
/// Status: the driver is ready.
pub const DRIVER_OK: u32 = 4;
/// Status: features are agreed on.
pub const FEATURES_OK: u32 = 8;
/// Status: the device does nothing until it is reset.
pub const NEEDS_RESET: u32 = 64;
/// Status: the driver has given up.
pub const FAILED: u32 = 128;

/// The registers of a device and its interrupt.
#[derive(Debug)]
pub struct Registers {
    /// The transport.
    pub mmio: Mmio,
    interrupt: OwnedFd,
}

impl Registers {
    /// Puts registers in front of a device; `memory` is that of the guest.
    ///
    /// # Errors
    /// What [`Mmio::new`] meets.
    pub fn new(device: Box<dyn Device>, memory: Memory) -> io::Result<Self> {
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            mmio: Mmio::new(device, memory, interrupt.try_clone()?)?,
            interrupt,
        })
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.mmio.write(offset, &value.to_le_bytes());
    }

    /// The device's status.
    pub fn status(&mut self) -> u32 {
        self.read(STATUS)
    }

    /// Adds a bit to the status, and says whether it stayed.
    pub fn add_status(&mut self, bit: u32) -> bool {
        let status = self.status();
        self.write(STATUS, status | bit);
        self.status() & bit == bit
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write(STATUS, 0);
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|select| {
            self.write(DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(DEVICE_FEATURES))
        });
        high << 32 | low
    }

    /// The first half of the initialisation: reset, `ACKNOWLEDGE`, `DRIVER`, features, `FEATURES_OK`.
    /// Returns the features that were chosen: the part of `wanted` that is offered.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when the device does not take a step.
    pub fn negotiate(&mut self, wanted: u64) -> io::Result<u64> {
        self.reset();
        let known = self.add_status(ACKNOWLEDGE) && self.add_status(DRIVER);
        let features = self.offered() & wanted;
        self.choose(features);
        if known && self.add_status(FEATURES_OK) {
            return Ok(features);
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    /// Writes features, whether or not they are offered.
    pub fn choose(&mut self, features: u64) {
        for (select, shift) in [(0, 0), (1, 32)] {
            let half = features >> shift & u64::from(u32::MAX);
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, u32::try_from(half).unwrap_or_default());
        }
    }

    /// Sets a queue up, and says whether the device finds it ready.
    pub fn set_up(&mut self, index: u16, queue: &DriverQueue) -> bool {
        self.set_up_at(index, queue.size().into(), queue.addresses())
    }

    /// The same for any size and addresses.
    pub fn set_up_at(&mut self, index: u16, size: u32, areas: [u64; 3]) -> bool {
        self.write(QUEUE_SELECT, index.into());
        self.write(QUEUE_SIZE, size);
        for (offset, address) in QUEUE_AREAS.into_iter().zip(areas) {
            let [low, high] = [address & u64::from(u32::MAX), address >> 32];
            self.write(offset, u32::try_from(low).unwrap_or_default());
            self.write(offset + 4, u32::try_from(high).unwrap_or_default());
        }
        self.write(QUEUE_READY, 1);
        self.read(QUEUE_READY) == 1
    }

    /// The largest size of a queue, 0 when there is none.
    pub fn queue_size_max(&mut self, index: u16) -> u32 {
        self.write(QUEUE_SELECT, index.into());
        self.read(QUEUE_SIZE_MAX)
    }

    /// Says that the driver is ready.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when the device does not take it.
    pub fn go(&mut self) -> io::Result<()> {
        if self.add_status(DRIVER_OK) {
            return Ok(());
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    /// Kicks a queue by its register.
    pub fn notify(&mut self, queue: u16) {
        self.write(QUEUE_NOTIFY, queue.into());
    }

    /// Kicks a queue by its eventfd, as an ioeventfd does.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn kick(&self, queue: u16) -> io::Result<()> {
        let kicks = self.mmio.kicks();
        let kick = kicks.get(usize::from(queue)).ok_or(io::ErrorKind::NotFound)?;
        rustix::io::write(kick, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Waits for an interrupt and acknowledges it; returns InterruptStatus: 1 for a used buffer, 2 for a
    /// configuration change.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after twenty seconds.
    pub fn wait(&mut self) -> io::Result<u32> {
        let timeout = rustix::time::Timespec::try_from(DEADLINE).unwrap_or_default();
        let mut fds = [PollFd::new(&self.interrupt, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(self.interrupted().unwrap_or_default())
    }

    /// The same for an interrupt that is there already.
    pub fn interrupted(&mut self) -> Option<u32> {
        rustix::io::read(&self.interrupt, &mut [0; 8]).ok()?;
        let pending = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, pending);
        Some(pending)
    }

    /// Reads the configuration space, again while it changes (VIRTIO 1.2 §2.5.2); byte by byte, which
    /// suits every field.
    pub fn config(&mut self, offset: u64, bytes: u64) -> Vec<u8> {
        loop {
            let before = self.read(CONFIG_GENERATION);
            let config = (offset..offset + bytes).map(|offset| {
                let mut byte = [0];
                self.mmio.read(CONFIG + offset, &mut byte);
                byte[0]
            });
            let config = config.collect();
            if self.read(CONFIG_GENERATION) == before {
                return config;
            }
        }
    }

    /// Writes a field of the configuration space: 1, 2, 4 or 8 bytes.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.mmio.write(CONFIG + offset, data);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Driver {
    /// The device's registers.
    pub registers: Registers,
    /// The guest's memory and the driver's side of the queues.
    pub rings: Rings,
    features: u64,
}

impl Driver {
    /// Initialises the device with all features that it offers.
    ///
    /// # Errors
    /// When memory or descriptors cannot be had, or the device does not take a step.
    pub fn new(device: impl Device + 'static) -> io::Result<Self> {
        Self::with_features(device, u64::MAX)
    }

    /// Initialises the device with those of its features that are `wanted`.
    ///
    /// # Errors
    /// When memory or descriptors cannot be had, or the device does not take a step.
    pub fn with_features(device: impl Device + 'static, wanted: u64) -> io::Result<Self> {
        let mut driver = Self::at_reset(device)?;
        driver.initialise(wanted)?;
        Ok(driver)
    }

    /// A device that nobody has talked to.
    ///
    /// # Errors
    /// When memory or descriptors cannot be had.
    pub fn at_reset(device: impl Device + 'static) -> io::Result<Self> {
        let rings = Rings::new(&device.queue_sizes())?;
        let memory = Memory::clone(&rings.memory());
        Ok(Self {
            registers: Registers::new(Box::new(device), memory)?,
            rings,
            features: 0,
        })
    }

    /// Resets the device and goes through the whole initialisation, with empty queues.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when the device does not take a step.
    pub fn initialise(&mut self, wanted: u64) -> io::Result<()> {
        self.features = self.registers.negotiate(wanted)?;
        self.rings.renew();
        for (index, queue) in (0..).zip(self.rings.queues()) {
            if !self.registers.set_up(index, queue) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        }
        self.registers.go()
    }

    /// Kicks a queue, if the device wants to hear of it.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn kick(&mut self, queue: u16) -> io::Result<()> {
        let event_idx = self.features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        if self.rings.queue(queue).wants_kick() || !event_idx {
            self.registers.kick(queue)?;
        }
        Ok(())
    }

    /// Waits for interrupts until the device returns a chain of this queue.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when no interrupt comes for twenty seconds.
    pub fn wait_used(&mut self, queue: u16) -> io::Result<(u16, u32)> {
        loop {
            self.rings.queue(queue).ask_for_signal();
            // The device has either seen that, or its chain is seen here (VIRTIO 1.2 §2.7.7.1).
            fence(Ordering::SeqCst);
            if let Some(used) = self.rings.used(queue) {
                return Ok(used);
            }
            self.registers.wait()?;
        }
    }

    /// Offers a chain, kicks, waits until the device returns it, and gives the bytes that it wrote. No
    /// other chain is in flight on this queue.
    ///
    /// # Errors
    /// See [`wait_used`](Self::wait_used); [`io::ErrorKind::StorageFull`] when there are not enough
    /// descriptors.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> io::Result<Vec<u8>> {
        let chain = self
            .rings
            .offer(queue, readable, writable)
            .ok_or(io::ErrorKind::StorageFull)?;
        self.kick(queue)?;
        let (_, bytes) = self.wait_used(queue)?;
        Ok(self.rings.written(&chain, bytes))
    }
}
