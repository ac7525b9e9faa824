//! Entropy source (VIRTIO 1.2 §5.4): the smallest device, and so the one that shows what a device is.
//!
//! Owns one counter. Knows guest memory and the host's random numbers (`getrandom`); must not know who
//! runs the guest nor how its queue was set up.
//!
//! ```text
//!   guest driver                    this device
//!  ┌─────────────┐  writable    ┌─────────────────┐
//!  │ request     │──buffers────►│ parse: how much │
//!  │ queue       │              │ execute: fill   │◄── getrandom
//!  │             │◄──used───────│                 │
//!  └─────────────┘              └─────────────────┘
//! ```
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | chain without a writable buffer, buffer outside of memory | chain is returned unused, counted, a rate-limited log line |
//! | huge buffers | 64 KiB of a chain are filled |
//! | requests without end | 256 KiB in a turn, then the worker looks at everything else |
//! | chain with a loop or thousands of buffers | cut off at the size of the queue |
//! | available index that jumps, head out of range, rings outside of memory | the queue is dead until the driver resets the device |
//!
//! Memory that a guest can make the device hold: 4 KiB.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::{DescriptorChain, Error, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use crate::complaint::Complaints;
use crate::queue::Chains;
use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Number of the queue that brings buffers to fill (§5.4.2).
pub const REQUEST_QUEUE: u16 = 0;

/// Linux has one request in flight.
const QUEUE_SIZE: u16 = 8;

/// The most that one chain gets. The driver sees how much it was and asks again (§5.4.6.2).
const CHAIN_BYTES: usize = 64 << 10;

/// The most that one turn gives: about a millisecond of `getrandom`.
const TURN_BYTES: usize = 256 << 10;

/// What is drawn at once.
const DRAW_BYTES: usize = 4 << 10;

/// What the device has done so far.
#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    requests: AtomicU64,
    malformed: AtomicU64,
}

impl Meter for Counters {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes_given", self.bytes.load(Ordering::Relaxed)),
            ("requests", self.requests.load(Ordering::Relaxed)),
            ("requests_malformed", self.malformed.load(Ordering::Relaxed)),
        ]
    }
}

/// A request that cannot be served.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("a request without a writable buffer")]
    NothingToFill,
    #[error("a request of more than {0} buffers")]
    TooManyBuffers(u16),
    #[error("a buffer outside of guest memory")]
    Memory(#[source] GuestMemoryError),
    #[error("the host has no random numbers")]
    Host(#[source] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    /// Readable while a turn left requests over.
    more: OwnedFd,
    counters: Arc<Counters>,
    complaints: Complaints,
    broken: bool,
}

impl Rng {
    /// A source of the host's entropy.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            more: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            counters: Arc::default(),
            complaints: Complaints::new("rng"),
            broken: false,
        })
    }

    /// Serves requests until none is left, or a turn's share is given.
    fn serve(&mut self, memory: &Memory, queue: &mut Queue) -> Result<Signals, Error> {
        let before = queue.next_used();
        let mut given = 0;
        queue.disable_notification(memory)?;
        loop {
            let Some(chain) = queue.next_chain(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let bytes = self.answer(memory, chain, queue.size());
            queue.add_used(memory, head, bytes)?;
            // Requests for little cost as much as a page.
            given += usize::try_from(bytes).unwrap_or(usize::MAX).max(DRAW_BYTES);
            if given >= TURN_BYTES {
                self.come_back();
                break;
            }
        }
        let used = queue.next_used() != before && queue.needs_notification(memory)?;
        Ok(Signals::default().with_queue(REQUEST_QUEUE, used))
    }

    /// Fills a chain; returns the bytes that it has now.
    fn answer(&mut self, memory: &Memory, chain: DescriptorChain<&Memory>, most: u16) -> u32 {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        match parse(chain, most).and_then(|buffers| fill(memory, &buffers)) {
            Ok(bytes) => {
                self.counters.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
                bytes
            }
            Err(error) => {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                self.complaints.warn(&error);
                0
            }
        }
    }

    /// Makes the worker call again at once; it can only fail when it will do so anyway.
    fn come_back(&self) {
        if let Err(cause) = rustix::io::write(&self.more, &1u64.to_ne_bytes()) {
            log::debug!("rng: the worker is awake already: {cause}");
        }
    }
}

/// The writable buffers of a request, cut to what one chain gets.
fn parse(chain: DescriptorChain<&Memory>, most: u16) -> Result<Vec<(GuestAddress, usize)>, RequestError> {
    let (mut buffers, mut left) = (Vec::new(), CHAIN_BYTES);
    for (seen, descriptor) in (1..).zip(chain) {
        if seen > most {
            return Err(RequestError::TooManyBuffers(most));
        }
        let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX).min(left);
        if descriptor.is_write_only() && len > 0 {
            buffers.push((descriptor.addr(), len));
            left -= len;
        }
    }
    if buffers.is_empty() {
        return Err(RequestError::NothingToFill);
    }
    Ok(buffers)
}

/// Fills buffers that [`parse`] has cut; returns their bytes.
fn fill(memory: &Memory, buffers: &[(GuestAddress, usize)]) -> Result<u32, RequestError> {
    let (mut entropy, mut filled) = ([0; DRAW_BYTES], 0);
    for &(start, len) in buffers {
        for from in (0..len).step_by(DRAW_BYTES) {
            let piece = &mut entropy[..DRAW_BYTES.min(len - from)];
            draw(piece).map_err(RequestError::Host)?;
            let address = u64::try_from(from).ok().and_then(|from| start.checked_add(from));
            let address = address.ok_or(RequestError::Memory(GuestMemoryError::GuestAddressOverflow))?;
            memory.write_slice(piece, address).map_err(RequestError::Memory)?;
        }
        filled += len;
    }
    Ok(u32::try_from(filled).unwrap_or(u32::MAX))
}

fn draw(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(drawn) => bytes = &mut bytes[drawn..],
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(())
}

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// There is none (§5.4.4).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.more.as_fd())
    }

    fn poll(&mut self) -> io::Result<()> {
        match rustix::io::read(&self.more, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        let [queue] = queues else {
            return Signals::default();
        };
        if self.broken || !queue.ready() {
            return Signals::default();
        }
        self.serve(memory, queue).unwrap_or_else(|cause| {
            self.complaints.warn(&format_args!(
                "the queue is broken until the driver resets the device: {cause}"
            ));
            self.broken = true;
            Signals {
                needs_reset: true,
                ..Signals::default()
            }
        })
    }

    fn reset(&mut self) {
        self.broken = false;
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.counters) as Arc<dyn Meter>
    }
}
