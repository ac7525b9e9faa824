//! A driver of the network device, with the device behind it, in one thread.
//!
//! Knows what a driver knows: frames and their headers, receive buffers, control commands.

#![expect(
    clippy::expect_used,
    reason = "a driver that cannot reach its own memory is a broken test"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::Queue;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::ring::{Buffer, DriverQueue};
use crate::net::{Features, FrameHeader, HEADER_BYTES, Net};
use crate::{COMMON_FEATURES, Device, Signals};

mod script;

pub use script::run_script;

const QUEUE_SIZE: u16 = 256;
const RING_BYTES: u64 = 0x4000;
const LANES: u64 = 0x20_0000;
/// Room for a header and the largest frame.
const SLOT_BYTES: u64 = 0x11000;
const TRANSMIT_SLOTS: u64 = 32;
/// What a pair of queues has for its frames.
const LANE_BYTES: u64 = (QUEUE_SIZE as u64 + TRANSMIT_SLOTS) * SLOT_BYTES;
const IN_MEMORY: &str = "the slots are in guest memory";

/// How long [`Machine::run_until`] waits.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long it waits for the device's events before it asks its condition again.
const ROUND: Duration = Duration::from_millis(20);

/// A frame that the device delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its header.
    pub header: FrameHeader,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// The driver. See the module.
#[derive(Debug)]
pub struct Guest {
    memory: Arc<GuestMemoryMmap>,
    file: File,
    bytes: usize,
    lanes: Vec<Lane>,
    control: DriverQueue,
    /// Whether a frame may take several buffers, as negotiated.
    pub mergeable: bool,
}

/// A pair of queues.
#[derive(Debug)]
struct Lane {
    receive: DriverQueue,
    transmit: DriverQueue,
    free_receive: Vec<u64>,
    free_transmit: Vec<u64>,
    /// Slots of what the device has: by head.
    offered: BTreeMap<u16, u64>,
    sent: BTreeMap<u16, Option<u64>>,
    /// Buffers of a frame whose last ones are not there yet.
    partial: Vec<Vec<u8>>,
}

impl Guest {
    /// A driver of this many pairs of queues, with memory of its own.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(pairs: usize) -> io::Result<Self> {
        let lanes = u64::try_from(pairs).unwrap_or(u64::MAX);
        let bytes = usize::try_from(LANES + lanes * LANE_BYTES).unwrap_or(usize::MAX);
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("mock-guest", flags)?);
        file.set_len(u64::try_from(bytes).unwrap_or(u64::MAX))?;
        let region = (
            GuestAddress(0),
            bytes,
            Some(FileOffset::new(file.try_clone()?, 0)),
        );
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([region]).map_err(io::Error::other)?);
        Ok(Self {
            lanes: (0..lanes).map(|lane| Lane::new(&memory, lane)).collect(),
            control: DriverQueue::new(Arc::clone(&memory), 2 * lanes * RING_BYTES, 64),
            memory,
            file,
            bytes,
            mergeable: true,
        })
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// The memfd behind it, and its bytes: one region at guest address 0.
    #[must_use]
    pub fn memory_file(&self) -> (&File, usize) {
        (&self.file, self.bytes)
    }

    /// All queues in their order, the control queue last.
    pub fn queues(&mut self) -> Vec<&mut DriverQueue> {
        let pairs = self.lanes.iter_mut();
        let mut queues: Vec<_> = pairs
            .flat_map(|lane| [&mut lane.receive, &mut lane.transmit])
            .collect();
        queues.push(&mut self.control);
        queues
    }

    /// Forgets everything, as a driver does after a reset.
    pub fn reset(&mut self) {
        let lanes = u64::try_from(self.lanes.len()).unwrap_or(u64::MAX);
        self.lanes = (0..lanes).map(|lane| Lane::new(&self.memory, lane)).collect();
        self.control = DriverQueue::new(Arc::clone(&self.memory), 2 * lanes * RING_BYTES, 64);
    }

    /// Gives the device up to `count` receive buffers of `bytes` each; returns how many it could.
    pub fn offer(&mut self, pair: usize, count: usize, bytes: u32) -> usize {
        let lane = &mut self.lanes[pair];
        let mut given = 0;
        while given < count {
            let Some(&address) = lane.free_receive.last() else {
                break;
            };
            let buffer = Buffer {
                address,
                len: bytes,
                writable: true,
            };
            let Some(head) = lane.receive.add(&[buffer]) else {
                break;
            };
            lane.free_receive.pop();
            lane.offered.insert(head, address);
            given += 1;
        }
        given
    }

    /// Sends a frame in buffers that end at `cuts` (counted from the header's first byte); `false` when
    /// nothing is free.
    pub fn send(&mut self, pair: usize, header: &FrameHeader, frame: &[u8], cuts: &[usize]) -> bool {
        self.send_bytes(pair, &[&header.to_bytes()[..], frame].concat(), cuts)
    }

    /// Sends any bytes in place of a header and a frame.
    pub fn send_bytes(&mut self, pair: usize, bytes: &[u8], cuts: &[usize]) -> bool {
        self.reclaim(pair);
        let lane = &mut self.lanes[pair];
        let slot = usize::try_from(SLOT_BYTES).unwrap_or(usize::MAX);
        let Some(&address) = lane.free_transmit.last().filter(|_| bytes.len() <= slot) else {
            return false;
        };
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect(IN_MEMORY);
        let Some(head) = lane.transmit.add(&buffers(address, bytes.len(), cuts)) else {
            return false;
        };
        lane.free_transmit.pop();
        lane.sent.insert(head, Some(address));
        true
    }

    /// Makes any chain available to a receive or transmit queue.
    pub fn send_chain(&mut self, queue: usize, chain: &[Buffer], indirect: bool) -> bool {
        self.reclaim(queue / 2);
        // The tables of indirect chains stand before the slots; one for each queue.
        let table = LANES - (u64::try_from(queue).unwrap_or(0) + 1) * RING_BYTES;
        let lane = &mut self.lanes[queue / 2];
        let ring = if queue % 2 == 1 {
            &mut lane.transmit
        } else {
            &mut lane.receive
        };
        let head = if indirect {
            ring.add_indirect(table, chain)
        } else {
            ring.add(chain)
        };
        if let (Some(head), 1) = (head, queue % 2) {
            lane.sent.insert(head, None);
        }
        head.is_some()
    }

    /// Chains of the transmit queue that came back since the last call.
    pub fn reclaim(&mut self, pair: usize) -> usize {
        let lane = &mut self.lanes[pair];
        let mut back = 0;
        while let Some((head, _)) = lane.transmit.used() {
            lane.free_transmit.extend(lane.sent.remove(&head).flatten());
            back += 1;
        }
        lane.transmit.ask_for_signal();
        back
    }

    /// Frames that the device delivered since the last call. Their buffers are free again.
    pub fn receive(&mut self, pair: usize) -> Vec<Received> {
        let mut frames = Vec::new();
        self.receive_each(pair, |header, frame| {
            frames.push(Received {
                header,
                frame: frame.to_vec(),
            });
        });
        frames
    }

    /// The same, each frame seen in place of being kept; returns how many there were.
    pub fn receive_each(&mut self, pair: usize, mut see: impl FnMut(FrameHeader, &[u8])) -> usize {
        let (memory, mergeable) = (&self.memory, self.mergeable);
        let lane = &mut self.lanes[pair];
        let mut seen = 0;
        while let Some((head, len)) = lane.receive.used() {
            let Some(address) = lane.offered.remove(&head) else {
                continue;
            };
            lane.free_receive.push(address);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            memory
                .read_slice(&mut bytes, GuestAddress(address))
                .expect(IN_MEMORY);
            if len > 0 {
                lane.partial.push(bytes);
                seen += usize::from(lane.complete(mergeable, &mut see));
            }
        }
        lane.receive.ask_for_signal();
        seen
    }

    /// Sends a control command with room for an answer.
    pub fn command(&mut self, bytes: &[u8]) -> bool {
        let address = LANES - 64 * RING_BYTES;
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect(IN_MEMORY);
        self.memory
            .write_slice(&[0xff], GuestAddress(address + 0x1000))
            .expect(IN_MEMORY);
        let asked = Buffer {
            address,
            len: u32::try_from(bytes.len()).unwrap_or(0),
            writable: false,
        };
        let answer = Buffer {
            address: address + 0x1000,
            len: 1,
            writable: true,
        };
        self.control.add(&[asked, answer]).is_some()
    }

    /// The answer to the last command, once it is there.
    pub fn answer(&mut self) -> Option<u8> {
        self.control.used()?;
        self.control.ask_for_signal();
        let mut answer = [0];
        let address = GuestAddress(LANES - 64 * RING_BYTES + 0x1000);
        self.memory.read_slice(&mut answer, address).expect(IN_MEMORY);
        Some(answer[0])
    }
}

impl Lane {
    fn new(memory: &Arc<GuestMemoryMmap>, number: u64) -> Self {
        let slots = LANES + number * LANE_BYTES;
        let slot = |index: u64| slots + index * SLOT_BYTES;
        let receive = u64::from(QUEUE_SIZE);
        let ring = |index| DriverQueue::new(Arc::clone(memory), index * RING_BYTES, QUEUE_SIZE);
        Self {
            receive: ring(2 * number),
            transmit: ring(2 * number + 1),
            free_receive: (0..receive).map(slot).collect(),
            free_transmit: (receive..receive + TRANSMIT_SLOTS).map(slot).collect(),
            offered: BTreeMap::new(),
            sent: BTreeMap::new(),
            partial: Vec::new(),
        }
    }

    /// Hands over the frame whose buffers are all there; returns whether there was one.
    fn complete(&mut self, mergeable: bool, see: &mut impl FnMut(FrameHeader, &[u8])) -> bool {
        let Some(header) = self.partial[0].first_chunk::<HEADER_BYTES>() else {
            self.partial.clear();
            return false;
        };
        let header = FrameHeader::from_bytes(header);
        let wanted = if mergeable { header.num_buffers.get() } else { 1 };
        if self.partial.len() < usize::from(wanted) {
            return false;
        }
        if let [only] = &self.partial[..] {
            see(header, &only[HEADER_BYTES..]);
        } else {
            see(header, &self.partial.concat()[HEADER_BYTES..]);
        }
        self.partial.clear();
        true
    }
}

/// The buffers of `len` bytes at `address`, ending at each of `cuts`.
fn buffers(address: u64, len: usize, cuts: &[usize]) -> Vec<Buffer> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| (*cut).min(len)).collect();
    ends.push(len);
    ends.sort_unstable();
    ends.dedup();
    let mut start = 0;
    let mut parts = Vec::with_capacity(ends.len());
    for end in ends.into_iter().filter(|end| *end > 0) {
        parts.push(Buffer {
            address: address + u64::try_from(start).unwrap_or(0),
            len: u32::try_from(end - start).unwrap_or(0),
            writable: false,
        });
        start = end;
    }
    parts
}

/// A driver and its device. See the module.
#[derive(Debug)]
pub struct Machine {
    /// The driver.
    pub guest: Guest,
    /// The device.
    pub device: Net,
    /// The device's sides of all queues, the control queue last.
    pub queues: Vec<Queue>,
    features: u64,
}

impl Machine {
    /// A driver that takes every feature the device offers.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn new(device: Net) -> io::Result<Self> {
        let features = device.features();
        Self::with_features(device, features)
    }

    /// A driver that chose these features.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn with_features(device: Net, features: u64) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        let guest = Guest::new(queues / 2)?;
        let mut machine = Self {
            guest,
            device,
            queues: Vec::new(),
            features: COMMON_FEATURES | features,
        };
        machine.start(queues);
        Ok(machine)
    }

    fn start(&mut self, queues: usize) {
        self.guest.mergeable = self.features & Features::MRG_RXBUF.bits() != 0;
        let driver = self.guest.queues();
        let event_idx = true;
        self.queues = driver
            .into_iter()
            .take(queues)
            .map(|queue| queue.device_side(event_idx))
            .collect();
        self.device.activate(self.features);
    }

    /// Lets the device work once; returns what it signalled.
    pub fn step(&mut self) -> Signals {
        if let Err(cause) = self.device.poll() {
            log::error!("mock: {cause}");
        }
        self.work()
    }

    /// Lets the device work on its queues, without a look at the host.
    pub fn work(&mut self) -> Signals {
        let mut queues: Vec<&mut Queue> = self.queues.iter_mut().collect();
        self.device.process(&self.guest.memory, &mut queues)
    }

    /// Steps until the condition holds.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it does not hold after twenty seconds.
    pub fn run_until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) -> io::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.step();
            if holds(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait(ROUND)?;
        }
    }

    /// Waits until the device has something to do; returns whether it has.
    ///
    /// # Errors
    /// When the host cannot wait.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = rustix::time::Timespec::try_from(timeout).unwrap_or_default();
        let events = self.device.events().into_iter();
        let mut fds: Vec<_> = events
            .map(|events| PollFd::from_borrowed_fd(events, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(cause) => Err(cause.into()),
        }
    }

    /// The driver resets the device and starts again with empty queues and these features.
    pub fn reset(&mut self, features: u64) {
        self.device.reset();
        self.guest.reset();
        self.features = COMMON_FEATURES | features;
        self.start(self.queues.len());
    }

    /// A figure of the device by its name; 0 for one that it does not have.
    #[must_use]
    pub fn figure(&self, name: &str) -> u64 {
        let figures = self.device.meter().figures();
        figures
            .iter()
            .find(|(figure, _)| *figure == name)
            .map_or(0, |(_, value)| *value)
    }
}
