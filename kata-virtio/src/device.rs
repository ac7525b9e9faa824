//! The seam between devices and transports: what a device is, whatever front door it stands behind.
//!
//! ```text
//!             features, config            Signals
//!  transport ◄──────────────── device ────────────► transport ──► driver
//!     │                          ▲ ▲
//!     └─ queues, kicks ──────────┘ └── events(): its sides on the host
//!
//!   created ── driver ok: activate(features) ──► process / poll, by turns ── reset() ──► created
//! ```
//!
//! A device never waits for anybody's will and starts no thread: one worker of its transport owns it
//! together with its queues, calls [`poll`](Device::poll) when [`events`](Device::events) is readable and
//! [`process`](Device::process) after every kick and every poll.
//! [`activate`](Device::activate) and [`reset`](Device::reset) run while there is no worker, on whatever
//! thread the transport was called: see [`transport`](crate::transport) for which that is.
//! It knows guest memory and descriptors of the host; never registers, KVM or QEMU.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// Guest memory, as every device here sees it.
pub type Memory = GuestMemoryMmap;

/// Feature bits that every device offers (VIRTIO 1.2 §6).
pub const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What a device is to the driver (VIRTIO 1.2 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Network card, §5.1.
    Net = 1,
    /// Block device, §5.2.
    Block = 2,
    /// Console, §5.3.
    Console = 3,
    /// Entropy source, §5.4.
    Rng = 4,
    /// Memory balloon, §5.5.
    Balloon = 5,
    /// Stream sockets, §5.10.
    Vsock = 19,
}

/// What the driver is to be told after a turn of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signals {
    /// Queues on which it waits for a signal, a bit for each (bit 0 is queue 0).
    pub queues: u64,
    /// The configuration space is another than before.
    pub config: bool,
    /// The driver broke a queue: the device does nothing until it is reset (VIRTIO 1.2 §2.1.1,
    /// `DEVICE_NEEDS_RESET`).
    pub needs_reset: bool,
}

impl Signals {
    /// The same, with a signal for a queue if `wanted`.
    #[must_use]
    pub fn with_queue(mut self, index: u16, wanted: bool) -> Self {
        self.queues |= u64::from(wanted) << index;
        self
    }

    /// Whether the driver waits for a signal of this queue.
    #[must_use]
    pub fn queue(self, index: u16) -> bool {
        self.queues >> index & 1 == 1
    }
}

/// What a device has done so far, readable from any thread.
pub trait Meter: Send + Sync {
    /// Its figures by name, in a fixed order; counts since the device was made, sizes in bytes.
    fn figures(&self) -> Vec<(&'static str, u64)>;
}

/// A virtio device. See the module.
pub trait Device: Send {
    /// Its type.
    fn kind(&self) -> Kind;

    /// Feature bits to offer, with [`COMMON_FEATURES`].
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two. At most 64 queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The configuration space now. Asked for before the driver comes and after each turn that says
    /// [`Signals::config`].
    fn config(&self) -> Vec<u8>;

    /// The driver wrote to the configuration space; the bytes are within [`config`](Self::config). By
    /// default such writes have no effect.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The bytes of the configuration space that may be written before there is a driver: those of a
    /// console's emergency writes (VIRTIO 1.2 §5.3.4). By default none.
    fn early_config(&self) -> Range<usize> {
        0..0
    }

    /// The driver is ready and has chosen `features`, a part of those offered.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// The descriptor that is readable when [`poll`](Self::poll) has something to do; the same one as
    /// long as the device lives.
    fn events(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes note of what happened on the host's side; [`process`](Self::process) then acts on it.
    ///
    /// # Errors
    /// When the host's side cannot be followed any more.
    fn poll(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Serves its queues until nothing is left to do, or a fair share is done: then
    /// [`events`](Self::events) is readable at once.
    ///
    /// There are as many queues as [`queue_sizes`](Self::queue_sizes) has entries; one that the driver
    /// does not use is not [`ready`](virtio_queue::QueueT::ready).
    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals;

    /// The driver has reset the device: forgets everything that it said.
    fn reset(&mut self);

    /// Whether everything that the guest had sent has been taken by the host.
    fn drained(&self) -> bool {
        true
    }

    /// Whether every chain that it took from its queues is answered, but for those that it keeps on
    /// purpose. Before a transport stops a queue, or saves it, it waits for that: by
    /// [`poll`](Self::poll) and by [`process`](Self::process) with queues that are not ready.
    fn settled(&self) -> bool {
        true
    }

    /// Its figures.
    fn meter(&self) -> Arc<dyn Meter>;
}
