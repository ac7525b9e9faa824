//! The rules of a virtio device before and around its queues: status, features, rings, reset (VIRTIO 1.2
//! §2.1, §2.2, §2.4, §3.1.1), whatever registers they are reached by.
//!
//! Owns the device at rest, or the worker that serves it. Knows no register's offset.

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bitflags::bitflags;
use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::board::Board;
use super::ring::Ring;
use super::state::RingState;
use super::worker::{End, Parts, Surroundings, Worker, wake};
use super::{drain, name};
use crate::complaint::Complaints;
use crate::{Device, Kind, Memory, Meter};

/// Queues that [`Signals`](crate::Signals) has bits for.
const MOST_QUEUES: usize = 64;

bitflags! {
    /// Device status (VIRTIO 1.2 §2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Status: u32 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        const NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

/// The order of the driver's steps: each with the one before it.
const STEPS: [(Status, Status); 5] = [
    (Status::ACKNOWLEDGE, Status::empty()),
    (Status::DRIVER, Status::ACKNOWLEDGE),
    (Status::FEATURES_OK, Status::DRIVER),
    (Status::DRIVER_OK, Status::FEATURES_OK),
    (Status::FAILED, Status::empty()),
];

/// Where device and queues are.
enum Stage {
    AtRest(Parts),
    Serving(Worker),
    /// The worker panicked.
    Lost,
}

/// See the module.
pub(super) struct Front {
    stage: Stage,
    board: Arc<Board>,
    memory: Memory,
    kicks: Vec<OwnedFd>,
    control: OwnedFd,
    kind: Kind,
    meter: Arc<dyn Meter>,
    offered: u64,
    accepted: u64,
    status: Status,
    rings: Vec<Ring>,
    paused: bool,
    resets: u64,
    refused: u64,
    complaints: Complaints,
}

impl Front {
    pub(super) fn new(device: Box<dyn Device>, memory: Memory, interrupt: OwnedFd) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        if sizes.len() > MOST_QUEUES {
            let message = format!("{} queues, and {MOST_QUEUES} are possible", sizes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let queues = sizes.iter().map(|&size| Queue::new(size));
        let queues = queues
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            board: Arc::new(Board::new(interrupt, device.config())),
            kicks: sizes.iter().map(|_| event()).collect::<Result<_, _>>()?,
            control: event()?,
            kind: device.kind(),
            meter: device.meter(),
            offered: device.features(),
            accepted: 0,
            status: Status::empty(),
            rings: sizes.into_iter().map(Ring::new).collect(),
            paused: false,
            resets: 0,
            refused: 0,
            complaints: Complaints::new(name(device.kind())),
            memory,
            stage: Stage::AtRest(Parts { device, queues }),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.meter)
    }

    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    pub(super) fn kicks(&self) -> &[OwnedFd] {
        &self.kicks
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    pub(super) fn ring(&self, index: u32) -> Option<&Ring> {
        self.rings.get(usize::try_from(index).ok()?)
    }

    /// Notes that the driver broke a rule; what it asked for does not happen.
    pub(super) fn refuse(&mut self, what: &dyn Display) {
        self.refused += 1;
        self.complaints.warn(what);
    }

    pub(super) fn status(&self) -> Status {
        let needs_reset = self.board.needs_reset() || matches!(self.stage, Stage::Lost);
        if needs_reset {
            self.status | Status::NEEDS_RESET
        } else {
            self.status
        }
    }

    /// The driver writes the status: everything that it has done so far, or nothing for a reset.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let Some(asked) = Status::from_bits(value).map(|asked| asked - Status::NEEDS_RESET) else {
            return self.refuse(&format_args!("status {value:#x} has unknown bits"));
        };
        if !asked.contains(self.status) || self.status.contains(Status::FAILED) {
            let status = self.status;
            return self.refuse(&format_args!("status {value:#x} takes back {status:?}"));
        }
        for (step, after) in STEPS {
            if asked.contains(step) && !self.status.contains(step) {
                self.step(step, after);
            }
        }
    }

    fn step(&mut self, step: Status, after: Status) {
        if !self.status.contains(after) {
            return self.refuse(&format_args!("{step:?} before {after:?}"));
        }
        if step == Status::FEATURES_OK && !self.features_are_acceptable() {
            let accepted = self.accepted;
            return self.refuse(&format_args!(
                "features {accepted:#x} were not offered or are not enough"
            ));
        }
        self.status |= step;
        if step == Status::DRIVER_OK {
            self.activate();
        }
        if step == Status::FAILED {
            self.refuse(&"the driver has given up");
        }
    }

    /// VIRTIO 1.2 §2.2.2, §6.2.
    fn features_are_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted >> VIRTIO_F_VERSION_1 & 1 == 1
    }

    /// The driver chooses 32 features; the others stay.
    pub(super) fn accept_features(&mut self, upper: bool, half: u32) {
        if !self.status.contains(Status::DRIVER) || self.status.contains(Status::FEATURES_OK) {
            return self.refuse(&"features written outside of their negotiation");
        }
        let half = u64::from(half);
        self.accepted = if upper {
            half << 32 | self.accepted & u64::from(u32::MAX)
        } else {
            self.accepted >> 32 << 32 | half
        };
    }

    /// A ring that the driver may change now: there is one, it is not ready, and the driver has agreed on
    /// features and not said that it is done (VIRTIO 1.2 §3.1.1, §4.2.2.2).
    pub(super) fn open_ring(&mut self, index: u32) -> Option<&mut Ring> {
        let in_time = self.status.contains(Status::FEATURES_OK) && !self.status.contains(Status::DRIVER_OK);
        let open = in_time && self.ring(index).is_some_and(|ring| !ring.ready);
        if !open {
            self.refuse(&format_args!("queue {index} cannot be changed now"));
            return None;
        }
        self.rings.get_mut(usize::try_from(index).ok()?)
    }

    /// The driver has set a ring up, or takes it back while it may. One that is not ready may be taken
    /// back at any time: drivers do so after a reset.
    pub(super) fn set_ready(&mut self, index: u32, ready: bool) {
        let is_ready = self.ring(index).is_some_and(|ring| ring.ready);
        if !ready && !is_ready {
            return;
        }
        if ready {
            let memory = self.memory.clone();
            let Some(ring) = self.open_ring(index) else { return };
            ring.ready = ring.is_valid(&memory);
            if !ring.ready {
                self.refuse(&format_args!(
                    "queue {index} lies outside of memory or is not aligned"
                ));
            }
        } else if self.status.contains(Status::DRIVER_OK) {
            self.refuse(&format_args!("queue {index} cannot be stopped alone"));
        } else if let Some(ring) = usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
        {
            ring.ready = false;
        }
    }

    /// The driver offers buffers, by a register.
    pub(super) fn kick(&mut self, queue: u32) {
        match usize::try_from(queue)
            .ok()
            .and_then(|queue| self.kicks.get(queue))
        {
            Some(kick) => wake(kick),
            None => self.refuse(&format_args!("there is no queue {queue} to kick")),
        }
    }

    /// The driver writes to the configuration space, within its bounds. What comes of it is on the board
    /// afterwards; while the device is served, this waits for the end of its turn.
    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) {
        if !self.status.contains(Status::DRIVER) && !self.is_early(offset, data.len()) {
            return self.refuse(&"configuration written before there is a driver");
        }
        match &mut self.stage {
            Stage::AtRest(parts) => {
                parts.device.write_config(offset, data);
                self.board.refresh(parts.device.config());
            }
            Stage::Serving(worker) => worker.write_config(&self.control, offset, data),
            Stage::Lost => {}
        }
    }

    /// Whether these bytes of the configuration may be written by whoever has no driver yet.
    fn is_early(&self, offset: usize, bytes: usize) -> bool {
        let Stage::AtRest(parts) = &self.stage else {
            return false;
        };
        let early = parts.device.early_config();
        let end = offset.checked_add(bytes);
        early.start <= offset && end.is_some_and(|end| end <= early.end)
    }

    /// The driver is ready: the queues become what their rings say.
    fn activate(&mut self) {
        let event_idx = self.accepted >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let Stage::AtRest(parts) = &mut self.stage else {
            return;
        };
        // Every ready ring was valid when it became so, and is the same since.
        for (queue, ring) in parts
            .queues
            .iter_mut()
            .zip(&self.rings)
            .filter(|(_, ring)| ring.ready)
        {
            match ring.queue(event_idx) {
                Ok(made) => *queue = made,
                Err(cause) => self.complaints.warn(&cause),
            }
        }
        parts.device.activate(self.accepted);
        self.board.refresh(parts.device.config());
        self.start_or_complain();
    }

    fn start_or_complain(&mut self) {
        if let Err(cause) = self.start() {
            // A driver that resets and starts again and again would drive the log.
            self.complaints
                .warn(&format_args!("cannot start its thread: {cause}"));
            self.board.announce(crate::Signals {
                needs_reset: true,
                ..crate::Signals::default()
            });
        }
    }

    /// Starts the worker, if there is anything to serve.
    fn start(&mut self) -> io::Result<()> {
        if self.paused || !self.status.contains(Status::DRIVER_OK) {
            return Ok(());
        }
        let (stage, outcome) = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::AtRest(parts) => {
                let surroundings = Surroundings {
                    memory: &self.memory,
                    board: &self.board,
                    kicks: &self.kicks,
                    control: &self.control,
                };
                match Worker::start(parts, &surroundings) {
                    Ok(worker) => (Stage::Serving(worker), Ok(())),
                    Err((parts, cause)) => (Stage::AtRest(parts), Err(cause)),
                }
            }
            stage => (stage, Ok(())),
        };
        self.stage = stage;
        outcome
    }

    /// Ends the worker, if there is one.
    fn stop(&mut self, end: End) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Serving(worker) => worker.stop(&self.control, end).map_or(Stage::Lost, Stage::AtRest),
            stage => stage,
        };
    }

    pub(super) fn pause(&mut self) -> io::Result<()> {
        self.paused = true;
        self.stop(End::Settled);
        match &self.stage {
            Stage::Lost => Err(io::Error::other("the device's thread panicked")),
            Stage::AtRest(parts) if !parts.device.settled() => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.paused = false;
        self.start()
    }

    /// VIRTIO 1.2 §2.4: everything is as at the beginning.
    fn reset(&mut self) {
        if self.status.is_empty() {
            return;
        }
        self.stop(End::AtOnce);
        self.resets += 1;
        self.status = Status::empty();
        self.accepted = 0;
        for ring in &mut self.rings {
            *ring = Ring::new(ring.max_size);
        }
        self.board.clear();
        if let Stage::AtRest(parts) = &mut self.stage {
            parts.device.reset();
            parts.queues.iter_mut().for_each(Queue::reset);
            self.board.refresh(parts.device.config());
        }
    }

    /// The rings with the positions of their queues; a worker pauses for it.
    pub(super) fn ring_states(&mut self) -> Vec<RingState> {
        self.stop(End::Settled);
        let queues = match &self.stage {
            Stage::AtRest(parts) => parts.queues.as_slice(),
            _ => &[],
        };
        let positions = queues
            .iter()
            .map(|queue| (queue.next_avail(), queue.next_used()))
            .chain(std::iter::repeat((0, 0)));
        let states = self.rings.iter().zip(positions);
        let states = states.map(|(ring, (next_avail, next_used))| RingState {
            size: ring.size,
            ready: ring.ready,
            areas: ring.areas(),
            next_avail,
            next_used,
        });
        let states = states.collect();
        self.start_or_complain();
        states
    }

    /// Whether the device does nothing until it is reset, or for good.
    pub(super) fn is_broken(&self) -> bool {
        self.status().contains(Status::NEEDS_RESET)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop(End::AtOnce);
        if let Stage::AtRest(parts) = &mut self.stage {
            drain(&mut *parts.device);
        }
    }
}
