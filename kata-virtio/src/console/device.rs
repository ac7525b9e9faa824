//! The console's queues and its configuration space (VIRTIO 1.2 §5.3.2, §5.3.4, §5.3.6).
//!
//! Knows guest memory and the host's side; not the transport that set the queues up.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::figures::Figures;
use super::host::{Host, Read, wake};
use super::{F_EMERG_WRITE, F_SIZE, RX_QUEUE, TX_QUEUE};
use crate::buffers::{Buffers, ChainError, Direction};
use crate::queue::Chains;
use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Entries of the queues. Linux keeps a page in each entry of the receive queue, so that is short.
const QUEUE_SIZES: [u16; 2] = [16, 64];

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 4096;

/// Bytes in one turn and direction; a chain counts as [`CHAIN_BYTES`] more than it has.
const TURN_BYTES: usize = 256 << 10;

/// What a chain costs beside its bytes, so that empty ones cost something.
const CHAIN_BYTES: usize = 256;

/// Where the byte of an emergency write is in the configuration space (VIRTIO 1.2 §5.3.4).
const EMERG_WR: usize = 8;

/// The device: moved into the worker that serves it.
#[derive(Debug)]
pub struct Console {
    host: Host,
    shared: Arc<Shared>,
    size: u32,
    config_changed: bool,
    broken: bool,
    /// Bytes taken of the chain that the transmit queue gives next.
    taken: usize,
    buffers: Buffers,
    chunk: Vec<u8>,
}

/// Changes the terminal from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<State>() == 32);

/// What a console is between two turns, without its descriptors: for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    columns: u16,
    rows: u16,
    taken: u32,
    unwritten: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    /// Columns in the lower half, rows in the upper: the first four bytes of the configuration space.
    size: AtomicU32,
    wake: Arc<OwnedFd>,
    figures: Arc<Figures>,
}

/// A queue that the driver has broken beyond a chain.
#[derive(Debug, thiserror::Error)]
#[error("the {queue} queue is broken and stays so until the driver resets the device: {cause}")]
struct Fault {
    queue: &'static str,
    cause: virtio_queue::Error,
}

/// How far a chain was taken.
enum Step {
    Done,
    /// The turn is over first.
    Unfinished,
}

impl Console {
    /// A console whose output goes to `output` and whose input comes from `input`, if there is any, and
    /// the handle that changes it. For what the descriptors must be, see the [module](super).
    ///
    /// # Errors
    /// When a descriptor cannot be made non-blocking or watched, or the process has none left.
    pub fn new(output: OwnedFd, input: Option<OwnedFd>) -> io::Result<(Self, Handle)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let figures = Arc::new(Figures::default());
        let shared = Arc::new(Shared {
            size: AtomicU32::new(0),
            wake: Arc::clone(&wake),
            figures: Arc::clone(&figures),
        });
        let handle = Handle {
            shared: Arc::clone(&shared),
        };
        let device = Self {
            host: Host::new(output, input, wake, figures)?,
            shared,
            size: 0,
            config_changed: false,
            broken: false,
            taken: 0,
            buffers: Buffers::default(),
            chunk: vec![0; CHUNK_BYTES],
        };
        Ok((device, handle))
    }

    /// What it is now; complete only while no turn runs.
    #[must_use]
    pub fn state(&self) -> State {
        let [columns, rows] = halves(self.size);
        State {
            columns,
            rows,
            taken: u32::try_from(self.taken).unwrap_or(u32::MAX),
            unwritten: self.host.waiting().to_vec(),
        }
    }

    /// Goes on from `state`, on queues that are where they were. The size is the state's until the
    /// handle changes it.
    pub fn restore(&mut self, state: &State) {
        self.size = u32::from(state.columns) | u32::from(state.rows) << 16;
        self.shared.size.store(self.size, Ordering::Relaxed);
        self.taken = usize::try_from(state.taken).unwrap_or(usize::MAX);
        self.host.push(&state.unwritten);
        self.host.flush();
    }

    fn run(&mut self, memory: &Memory, rx: &mut Queue, tx: &mut Queue) -> Result<Signals, Fault> {
        let (mut sends, mut receives) = (TURN_BYTES, TURN_BYTES);
        let mut signals = Signals::default();
        if tx.ready() {
            let waits = turn(tx, memory, |tx| self.transmit(memory, tx, &mut sends));
            signals = signals.with_queue(TX_QUEUE, waits.map_err(fault("transmit"))?);
        }
        if rx.ready() {
            let waits = turn(rx, memory, |rx| self.deliver(memory, rx, &mut receives));
            signals = signals.with_queue(RX_QUEUE, waits.map_err(fault("receive"))?);
        }
        if sends == 0 || receives == 0 {
            self.host.wake();
        }
        Ok(signals)
    }

    /// Guest to host: every chain is taken, whether or not the host reads.
    fn transmit(
        &mut self,
        memory: &Memory,
        tx: &mut Queue,
        budget: &mut usize,
    ) -> Result<(), virtio_queue::Error> {
        tx.disable_notification(memory)?;
        while *budget > 0 {
            let Some(chain) = tx.next_chain(memory)? else {
                if tx.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let loaded = self.buffers.load(chain, tx.size(), Direction::Readable);
            match loaded.and_then(|()| self.take(memory, budget)) {
                Ok(Step::Done) => {}
                Ok(Step::Unfinished) => {
                    tx.go_to_previous_position();
                    return Ok(());
                }
                Err(error) => self.complain(&error),
            }
            self.taken = 0;
            *budget = budget.saturating_sub(CHAIN_BYTES);
            tx.add_used(memory, head, 0)?;
        }
        Ok(())
    }

    /// Takes the loaded chain from where it was left.
    fn take(&mut self, memory: &Memory, budget: &mut usize) -> Result<Step, ChainError> {
        while self.taken < self.buffers.bytes() {
            let count = (self.buffers.bytes() - self.taken).min(CHUNK_BYTES).min(*budget);
            if count == 0 {
                return Ok(Step::Unfinished);
            }
            let chunk = &mut self.chunk[..count];
            self.buffers.read(memory, self.taken, chunk)?;
            self.host.push(chunk);
            self.shared.figures.from_guest.add(count);
            self.taken += count;
            *budget -= count;
        }
        Ok(Step::Done)
    }

    /// Host to guest. The guest's kicks are asked for only while it has no buffer, the host's events
    /// only while it has one.
    fn deliver(
        &mut self,
        memory: &Memory,
        rx: &mut Queue,
        budget: &mut usize,
    ) -> Result<(), virtio_queue::Error> {
        rx.disable_notification(memory)?;
        while *budget > 0 {
            let Some(chain) = rx.next_chain(memory)? else {
                if rx.enable_notification(memory)? {
                    continue;
                }
                self.host.listen(false);
                return Ok(());
            };
            let head = chain.head_index();
            let loaded = self.buffers.load(chain, rx.size(), Direction::Writable);
            let written = match loaded.and_then(|()| self.give(memory, *budget)) {
                Ok(Read::Bytes(count)) => count,
                Ok(Read::Nothing | Read::Ended) => {
                    rx.go_to_previous_position();
                    self.host.listen(true);
                    return Ok(());
                }
                Err(error) => {
                    self.complain(&error);
                    0
                }
            };
            *budget = budget.saturating_sub(written + CHAIN_BYTES);
            rx.add_used(memory, head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    /// Puts what the host has into the loaded chain, which is checked first: a byte that was read and
    /// cannot be written would be lost.
    fn give(&mut self, memory: &Memory, budget: usize) -> Result<Read, ChainError> {
        self.buffers.check(memory)?;
        let most = self.buffers.bytes().min(CHUNK_BYTES).min(budget);
        let read = self.host.read(&mut self.chunk[..most]);
        if let Read::Bytes(count) = read {
            self.buffers.write(memory, &self.chunk[..count])?;
            self.shared.figures.to_guest.add(count);
        }
        Ok(read)
    }

    fn complain(&mut self, about: &dyn std::fmt::Display) {
        self.shared.figures.malformed.add(1);
        self.host.complain(about);
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    /// Columns, rows, `max_nr_ports` of one, and `emerg_wr`, which reads as zero.
    fn config(&self) -> Vec<u8> {
        let mut config = self.size.to_le_bytes().to_vec();
        config.extend(1u32.to_le_bytes());
        config.extend(0u32.to_le_bytes());
        config
    }

    fn early_config(&self) -> Range<usize> {
        EMERG_WR..EMERG_WR + 4
    }

    /// The low byte of `emerg_wr` is output, even before the driver is ready (VIRTIO 1.2 §5.3.4.2).
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let byte = EMERG_WR.checked_sub(offset).and_then(|at| data.get(at));
        if let Some(&byte) = byte {
            self.shared.figures.from_guest.add(1);
            self.host.push(&[byte]);
            self.host.flush();
        }
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.events())
    }

    fn poll(&mut self) -> io::Result<()> {
        self.host.asleep()?;
        self.host.flush();
        let size = self.shared.size.load(Ordering::Relaxed);
        self.config_changed |= size != self.size;
        self.size = size;
        Ok(())
    }

    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        let [rx, tx, ..] = queues else {
            return Signals::default();
        };
        if self.broken {
            return Signals::default();
        }
        let done = self.run(memory, rx, tx);
        self.host.flush();
        let mut signals = done.unwrap_or_else(|fault| {
            self.complain(&fault);
            self.reset();
            self.broken = true;
            Signals {
                needs_reset: true,
                ..Signals::default()
            }
        });
        signals.config = std::mem::take(&mut self.config_changed);
        signals
    }

    /// What the driver had sent still goes to the host; the terminal keeps its size.
    fn reset(&mut self) {
        self.shared.figures.resets.add(1);
        self.host.listen(false);
        self.taken = 0;
        self.broken = false;
    }

    fn drained(&self) -> bool {
        self.host.waiting().is_empty()
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.shared.figures) as Arc<dyn Meter>
    }
}

impl Handle {
    /// The terminal has another size; a driver that has chosen `SIZE` is told. Zero for both: unknown, as
    /// at the beginning.
    pub fn set_size(&self, columns: u16, rows: u16) {
        let size = u32::from(columns) | u32::from(rows) << 16;
        if self.shared.size.swap(size, Ordering::Relaxed) != size {
            wake(&self.shared.wake);
        }
    }

    /// The size as it was last set: columns and rows.
    #[must_use]
    pub fn size(&self) -> (u16, u16) {
        let [columns, rows] = halves(self.shared.size.load(Ordering::Relaxed));
        (columns, rows)
    }
}

fn halves(size: u32) -> [u16; 2] {
    let [a, b, c, d] = size.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// Serves a queue; returns whether the driver waits for a signal.
fn turn(
    queue: &mut Queue,
    memory: &Memory,
    serve: impl FnOnce(&mut Queue) -> Result<(), virtio_queue::Error>,
) -> Result<bool, virtio_queue::Error> {
    let before = queue.next_used();
    serve(queue)?;
    Ok(queue.next_used() != before && queue.needs_notification(memory)?)
}

fn fault(queue: &'static str) -> impl Fn(virtio_queue::Error) -> Fault {
    move |cause| Fault { queue, cause }
}
