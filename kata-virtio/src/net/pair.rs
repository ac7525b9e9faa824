//! A pair of queues and its end of the tap: what one turn of it is.
//!
//! ```text
//!             ┌────────── kick ──────────┐              ┌─── frame in the tap ───┐
//!  receive: starved (no buffer) ──► moving ── tap empty ──► idle
//!              the tap is not read     │
//!                                      └── rate spent ──► waits for the clock
//!  transmit: blocked (host takes nothing) ──► moving ── queue empty ──► idle
//!              the chain stays in the queue
//! ```
//!
//! The tap is watched by edges, so a direction that cannot go on costs nothing until what it waits for
//! comes. A frame that is out of the tap and finds too few buffers is held here, never dropped.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use zerocopy::little_endian::U16;

use super::chains::{self, Filled, Parts, Side};
use super::counters::{Cells, Count};
use super::features::Features;
use super::header::{FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, Malformed};
use super::limits::Limits;
use super::outgoing::{Outgoing, Unfit};
use crate::Memory;
use crate::complaint::Complaints;

/// Frames of one direction in one turn of a pair: a guest or host that never stops sending cannot keep
/// the worker from everything else.
const FRAMES_AT_ONCE: usize = 256;

/// Their bytes.
const BYTES_AT_ONCE: usize = 2 << 20;

/// Where a frame to the guest is on its way: header and frame, and a byte by which too long a frame is known.
const BUFFER_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES + 1;

/// Bytes that a frame may be longer than the MTU: an Ethernet header with a VLAN tag.
const LINK_HEADER_BYTES: usize = 18;

/// What a turn of a pair needs of the device.
pub(super) struct Turn<'a> {
    pub(super) memory: &'a Arc<Memory>,
    pub(super) features: Features,
    pub(super) mtu: Option<u16>,
    /// Whether frames pass at all.
    pub(super) link_up: bool,
    pub(super) limits: &'a mut Limits,
    pub(super) counters: &'a Cells,
    pub(super) complaints: &'a mut Complaints,
    /// The rate let nothing of the pair pass that had its turn.
    pub(super) starved: bool,
    /// There is more to do, at once.
    pub(super) again: bool,
    /// The interface is gone.
    pub(super) lost: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pair {
    /// The tap may have a frame.
    readable: bool,
    /// The tap may take a frame.
    writable: bool,
    /// Bytes of the frame out of the tap that waits for buffers, with its header; 0 for none.
    held: usize,
    /// Whether the rate of that frame, and of the next one to the host, is paid for.
    incoming_paid: bool,
    outgoing_paid: bool,
    incoming: Vec<u8>,
    outgoing: Outgoing,
    parts: Parts,
    filled: Vec<Filled>,
}

/// How a direction's one frame went.
enum Step {
    /// It went, or cannot be helped: on to the next.
    Next(usize),
    /// Nothing more can be done now.
    Wait,
}

/// What is left of a turn.
struct Budget {
    frames: usize,
    bytes: usize,
}

impl Budget {
    fn new() -> Self {
        Self {
            frames: FRAMES_AT_ONCE,
            bytes: BYTES_AT_ONCE,
        }
    }

    fn spend(&mut self, bytes: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// No frame has passed.
    fn is_whole(&self) -> bool {
        self.bytes == BYTES_AT_ONCE
    }

    fn is_spent(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }
}

impl Pair {
    pub(super) fn new() -> Self {
        Self {
            readable: true,
            writable: true,
            held: 0,
            incoming_paid: false,
            outgoing_paid: false,
            incoming: vec![0; BUFFER_BYTES],
            outgoing: Outgoing::default(),
            parts: Parts::default(),
            filled: Vec::new(),
        }
    }

    /// The tap has changed: both directions try again.
    pub(super) fn wake(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Forgets what it holds; returns whether that was a frame.
    pub(super) fn reset(&mut self) -> bool {
        self.incoming_paid = false;
        self.outgoing_paid = false;
        self.outgoing.clear();
        std::mem::take(&mut self.held) > 0
    }

    /// Guest to host; returns whether the driver waits for a signal.
    pub(super) fn transmit(
        &mut self,
        turn: &mut Turn<'_>,
        tap: BorrowedFd<'_>,
        queue: &mut Queue,
    ) -> Result<bool, QueueError> {
        let before = queue.next_used();
        queue.disable_notification(&**turn.memory)?;
        let mut budget = Budget::new();
        while let Some(chain) = chains::next_chain(turn.memory, queue)? {
            let head = chain.head_index();
            self.parts.clear();
            let loaded = self
                .parts
                .append(chain, Side::Readable, queue.size(), HEADER_BYTES);
            let parsed = loaded
                .map_err(Unfit::from)
                .and_then(|_| self.outgoing.parse(turn.memory, &self.parts, turn.features));
            match parsed.map(|bytes| self.send(turn, tap, bytes)) {
                Ok(Step::Next(bytes)) => budget.spend(bytes),
                Ok(Step::Wait) => {
                    turn.starved = !self.outgoing_paid && budget.is_whole();
                    chains::put_back(queue, 1);
                    break;
                }
                Err(error) => {
                    budget.spend(0);
                    turn.malformed(&error);
                }
            }
            queue.add_used(&**turn.memory, head, 0)?;
            if budget.is_spent() {
                turn.again = true;
                break;
            }
        }
        self.outgoing.clear();
        Ok(queue.next_used() != before && queue.needs_notification(&**turn.memory)?)
    }

    /// Sends the frame that was parsed, of so many bytes.
    fn send(&mut self, turn: &mut Turn<'_>, tap: BorrowedFd<'_>, bytes: usize) -> Step {
        if !turn.link_up {
            turn.counters.add(Count::DroppedFromGuest, 1);
            return Step::Next(bytes);
        }
        self.outgoing_paid = self.outgoing_paid || turn.limits.permit_from_guest(bytes, turn.counters);
        if !self.writable || !self.outgoing_paid {
            return Step::Wait;
        }
        match self.outgoing.send(tap) {
            Ok(()) => {
                turn.counters.add(Count::FramesFromGuest, 1);
                turn.counters.add(Count::BytesFromGuest, bytes);
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                turn.counters.add(Count::TransmitStalls, 1);
                return Step::Wait;
            }
            Err(error) => turn.not_sent(error),
        }
        self.outgoing_paid = false;
        Step::Next(bytes)
    }

    /// Host to guest; returns whether the driver waits for a signal.
    pub(super) fn receive(
        &mut self,
        turn: &mut Turn<'_>,
        tap: BorrowedFd<'_>,
        queue: &mut Queue,
    ) -> Result<bool, QueueError> {
        let before = queue.next_used();
        queue.disable_notification(&**turn.memory)?;
        let mut budget = Budget::new();
        while let Step::Next(bytes) = self.receive_one(turn, tap, queue)? {
            budget.spend(bytes);
            if budget.is_spent() {
                turn.again = true;
                break;
            }
        }
        turn.starved = self.held > 0 && !self.incoming_paid && budget.is_whole();
        chains::signal_wanted(turn.memory, queue, before)
    }

    fn receive_one(
        &mut self,
        turn: &mut Turn<'_>,
        tap: BorrowedFd<'_>,
        queue: &mut Queue,
    ) -> Result<Step, QueueError> {
        if self.held == 0 {
            if !turn.link_up || !self.readable {
                return Ok(Step::Wait);
            }
            // What no buffer is there for stays in the tap.
            if !chains::has_chain(turn.memory, queue)? && !queue.enable_notification(&**turn.memory)? {
                turn.counters.add(Count::ReceiveStalls, 1);
                return Ok(Step::Wait);
            }
            if !self.fetch(turn, tap) {
                return Ok(if self.readable { Step::Next(0) } else { Step::Wait });
            }
        }
        let bytes = self.held - HEADER_BYTES;
        self.incoming_paid = self.incoming_paid || turn.limits.permit_to_guest(bytes, turn.counters);
        if !self.incoming_paid {
            return Ok(Step::Wait);
        }
        self.deliver(turn, queue)
    }

    /// Takes a frame out of the tap; returns whether there was a good one.
    fn fetch(&mut self, turn: &mut Turn<'_>, tap: BorrowedFd<'_>) -> bool {
        let total = match rustix::io::read(tap, &mut self.incoming[..]) {
            Ok(0) if hung_up(tap) => return self.stop_reading(turn, true),
            // Sockets have empty messages, which are no frames.
            Ok(total) => total,
            Err(Errno::AGAIN) => return self.stop_reading(turn, false),
            Err(Errno::INTR) => return false,
            Err(error) => {
                turn.lose(&format_args!("it cannot be read any more: {error}"));
                return self.stop_reading(turn, true);
            }
        };
        match self.judge(turn, total) {
            Ok(()) => self.held = total,
            Err(error) => {
                turn.counters.add(Count::DroppedToGuest, 1);
                log::debug!("net: frame of the host is not for this driver: {error}");
            }
        }
        self.held > 0
    }

    fn stop_reading(&mut self, turn: &mut Turn<'_>, lost: bool) -> bool {
        self.readable = false;
        if lost {
            turn.lost = true;
            turn.link_up = false;
        }
        false
    }

    fn judge(&mut self, turn: &Turn<'_>, total: usize) -> Result<(), Malformed> {
        let Some((header, frame)) = self.incoming[..total].split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(Malformed::Length(0));
        };
        let judged = FrameHeader::from_bytes(header).judge_to_guest(frame.len(), turn.features)?;
        let longest = turn.mtu.map(|mtu| usize::from(mtu) + LINK_HEADER_BYTES);
        if judged.gso_type == 0 && longest.is_some_and(|longest| frame.len() > longest) {
            return Err(Malformed::Length(frame.len()));
        }
        *header = judged.to_bytes();
        Ok(())
    }

    /// Gives the frame that is held to the driver.
    fn deliver(&mut self, turn: &mut Turn<'_>, queue: &mut Queue) -> Result<Step, QueueError> {
        self.parts.clear();
        self.filled.clear();
        while self.parts.bytes() < self.held {
            let Some(chain) = chains::next_chain(turn.memory, queue)? else {
                chains::put_back(queue, self.filled.len());
                turn.counters.add(Count::ReceiveStalls, 1);
                return Ok(Step::Wait);
            };
            let head = chain.head_index();
            match self
                .parts
                .append(chain, Side::Writable, queue.size(), HEADER_BYTES + 1)
            {
                Ok(room) => self.fill(head, room),
                Err(error) => {
                    // Those before it go with it, so that the positions in the queue stay in order.
                    turn.malformed(&error);
                    self.filled.push((head, 0));
                    return self.give_back(turn, queue);
                }
            }
            let most = if turn.features.contains(Features::MRG_RXBUF) {
                usize::from(queue.size())
            } else {
                1
            };
            if self.filled.len() >= most && self.parts.bytes() < self.held {
                return Ok(self.drop_held(turn, queue));
            }
        }
        self.write_frame(turn, queue)
    }

    /// Notes that the next part of the frame goes into a chain with this much room.
    fn fill(&mut self, head: u16, room: usize) {
        let before = self.parts.bytes() - room;
        let bytes = room.min(self.held - before);
        self.filled.push((head, u32::try_from(bytes).unwrap_or(u32::MAX)));
    }

    fn write_frame(&mut self, turn: &mut Turn<'_>, queue: &mut Queue) -> Result<Step, QueueError> {
        let count = u16::try_from(self.filled.len()).unwrap_or(u16::MAX);
        self.incoming[HEADER_BYTES - 2..HEADER_BYTES].copy_from_slice(&U16::new(count).to_bytes());
        if let Err(error) = self.parts.scatter(&**turn.memory, &self.incoming[..self.held]) {
            turn.malformed(&error);
            return self.give_back(turn, queue);
        }
        chains::publish(turn.memory, queue, &self.filled)?;
        let bytes = std::mem::take(&mut self.held) - HEADER_BYTES;
        self.incoming_paid = false;
        turn.counters.add(Count::FramesToGuest, 1);
        turn.counters.add(Count::BytesToGuest, bytes);
        Ok(Step::Next(bytes))
    }

    /// Returns the chains unused; the frame waits for better ones.
    fn give_back(&mut self, turn: &mut Turn<'_>, queue: &mut Queue) -> Result<Step, QueueError> {
        for (_, len) in &mut self.filled {
            *len = 0;
        }
        chains::publish(turn.memory, queue, &self.filled)?;
        Ok(Step::Next(0))
    }

    /// The driver has given all that it can, and it is too little for this frame.
    fn drop_held(&mut self, turn: &mut Turn<'_>, queue: &mut Queue) -> Step {
        chains::put_back(queue, self.filled.len());
        turn.counters.add(Count::DroppedToGuest, 1);
        turn.complaints.warn(&format_args!(
            "receive buffers are too small for a frame of {} bytes",
            self.held
        ));
        self.held = 0;
        self.incoming_paid = false;
        Step::Next(0)
    }
}

impl Turn<'_> {
    fn malformed(&mut self, error: &dyn std::error::Error) {
        self.counters.add(Count::Malformed, 1);
        self.complaints.warn(&error);
    }

    /// The interface is gone: no frame passes any more.
    fn lose(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.lost, true) {
            log::error!("net: the tap is gone: {why}");
        }
        self.link_up = false;
    }

    /// A frame that the host refuses is lost, as on any wire: `EINVAL` for what the kernel finds wrong
    /// with it, `EIO` from an interface that is not up.
    fn not_sent(&mut self, error: Errno) {
        self.counters.add(Count::DroppedFromGuest, 1);
        match error {
            Errno::BADFD | Errno::NODEV | Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET => {
                self.lose(&format_args!("it cannot be written any more: {error}"));
            }
            _ => self
                .complaints
                .warn(&format_args!("the host refused a frame: {error}")),
        }
    }
}

/// Whether nothing will come out of the tap any more.
fn hung_up(tap: BorrowedFd<'_>) -> bool {
    let ends = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP;
    let mut fds = [PollFd::from_borrowed_fd(tap, PollFlags::RDHUP)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds[0].revents().intersects(ends),
        Err(error) => error != Errno::INTR,
    }
}
