//! Any device with the mock's queues before it, in one thread.
//!
//! Knows no registers: the queues are set up as a transport would leave them.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;

use super::rings::Rings;
use crate::{Device, Signals};

/// How long [`Bench::run_until`] waits.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long it waits for the host's side before it asks its condition again, which may depend on other
/// threads.
const ROUND: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub struct Bench<D> {
    /// The device.
    pub device: D,
    /// The driver's side of its queues.
    pub rings: Rings,
    /// The device's side of them.
    pub queues: Vec<Queue>,
    features: u64,
}

impl<D: Device> Bench<D> {
    /// A device whose driver has chosen all its features.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn new(device: D) -> io::Result<Self> {
        let features = device.features();
        Self::with_features(device, features)
    }

    /// A device whose driver has chosen `features`.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn with_features(mut device: D, features: u64) -> io::Result<Self> {
        let rings = Rings::new(&device.queue_sizes())?;
        device.activate(features);
        Ok(Self {
            queues: device_sides(&rings, features),
            device,
            rings,
            features,
        })
    }

    /// Lets the device look at the host's side and then work once.
    ///
    /// # Errors
    /// What the device's [`poll`](Device::poll) meets.
    pub fn step(&mut self) -> io::Result<Signals> {
        self.device.poll()?;
        Ok(self.work())
    }

    /// Lets the device work on its queues once.
    pub fn work(&mut self) -> Signals {
        let mut queues: Vec<&mut Queue> = self.queues.iter_mut().collect();
        self.device.process(&self.rings.memory(), &mut queues)
    }

    /// Steps until `found` finds something.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it finds nothing for twenty seconds; what a step meets.
    pub fn run_until<T>(&mut self, mut found: impl FnMut(&mut Rings) -> Option<T>) -> io::Result<T> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let signals = self.step()?;
            if let Some(found) = found(&mut self.rings) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if signals == Signals::default() {
                self.wait_for_host()?;
            }
        }
    }

    /// Offers a chain, steps until the device returns it, and gives the bytes that it wrote. No other
    /// chain is in flight on this queue.
    ///
    /// # Errors
    /// See [`run_until`](Self::run_until); [`io::ErrorKind::StorageFull`] when there are not enough
    /// descriptors.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> io::Result<Vec<u8>> {
        let chain = self
            .rings
            .offer(queue, readable, writable)
            .ok_or(io::ErrorKind::StorageFull)?;
        let (_, bytes) = self.run_until(|rings| rings.used(queue).filter(|(head, _)| *head == chain.head))?;
        Ok(self.rings.written(&chain, bytes))
    }

    /// The driver resets the device and starts again with empty queues.
    pub fn reset(&mut self) {
        self.device.reset();
        self.rings.renew();
        self.queues = device_sides(&self.rings, self.features);
        self.device.activate(self.features);
    }

    fn wait_for_host(&self) -> io::Result<()> {
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

fn device_sides(rings: &Rings, features: u64) -> Vec<Queue> {
    let event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
    let queues = rings.queues().iter();
    queues.map(|queue| queue.device_side(event_idx)).collect()
}
