//! The mock's guest with a device behind it, in one thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::guest::Guest;
use crate::vsock::Vsock;
use crate::{Device, Signals};

/// How long [`Machine::run_until`] waits.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long it waits for a stream before it asks its condition again, which may depend on other
/// threads.
const ROUND: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub struct Machine {
    /// The driver.
    pub guest: Guest,
    /// The device.
    pub device: Vsock,
    /// The device's sides of the receive, transmit and event queues.
    pub queues: [Queue; 3],
    memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    /// Starts a guest of CID 3 with this device.
    ///
    /// # Errors
    /// When the guest's memory cannot be had, or the device is not ready.
    pub fn new(mut device: Vsock) -> io::Result<Self> {
        device.ready()?;
        let cid = device.guest_cid();
        let mut guest = Guest::new(cid)?;
        Ok(Self {
            queues: guest.queues().map(|queue| queue.device_side(true)),
            memory: guest.memory(),
            guest,
            device,
        })
    }

    /// Lets the device work once, then the guest; returns what the device signalled.
    pub fn step(&mut self) -> Signals {
        if let Err(cause) = self.device.poll() {
            log::error!("mock: {cause}");
        }
        let signals = self.work();
        self.guest.pump();
        signals
    }

    /// Lets the device work once, and not the guest.
    pub fn work(&mut self) -> Signals {
        self.device.process(&self.memory, &mut self.queues.each_mut())
    }

    /// Steps until the condition holds.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it does not hold and the device did nothing for twenty seconds, or after ten
    /// minutes.
    pub fn run_until(&mut self, mut holds: impl FnMut(&mut Guest) -> bool) -> io::Result<()> {
        let end = Instant::now() + 30 * DEADLINE;
        let mut deadline = Instant::now() + DEADLINE;
        loop {
            let signals = self.step();
            if holds(&mut self.guest) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if signals != Signals::default() {
                deadline = Instant::now() + DEADLINE;
            } else if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            } else {
                self.wait_for_streams()?;
            }
        }
    }

    /// The driver resets the device and starts again with empty queues.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn reset(&mut self) -> io::Result<()> {
        self.guest.reset()?;
        self.memory = self.guest.memory();
        self.queues = self.guest.queues().map(|queue| queue.device_side(true));
        self.device.reset();
        Ok(())
    }

    fn wait_for_streams(&self) -> io::Result<()> {
        let timeout = rustix::time::Timespec::try_from(ROUND).unwrap_or_default();
        let mut fds: Vec<_> = self
            .device
            .events()
            .map(|events| PollFd::from_borrowed_fd(events, PollFlags::IN))
            .into_iter()
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }
}
