//! The device: takes requests off its queues and gives answers back.
//!
//! Knows queues, guest memory and the executor; not how a request reaches the disk.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::answer::{Fault, Pending, answer, fault, signals};
use super::builder::{BuildError, Builder, Settings};
use super::clear::Ranges;
use super::counters::{Cells, Counters, Shelved};
use super::disk::{Backing, Disk};
use super::engine::{Begun, Engine, Executor, IN_FLIGHT_MAX};
use super::events::Events;
use super::kernel::Task;
use super::layout::{Layout, QUEUE_SIZE, WRITEBACK_OFFSET};
use super::request::{Part, Request};
use super::shelf::Shelf;
use super::turn::{Budget, weight};
use super::verdict::{Judge, Refusal, SERIAL_BYTES, Work};
use crate::complaint::Complaints;
use crate::queue::Chains;
use crate::vectors::Kept;
use crate::{Device, Kind, Memory, Meter, Signals};

/// A disk. Made by a [`Builder`].
pub struct Block {
    settings: Settings,
    layout: Layout,
    negotiated: State,
    executor: Executor,
    events: Events,
    /// What is in the executor, by its token.
    pending: Vec<Pending>,
    request: Request,
    /// Those of the request, if it has any.
    ranges: Ranges,
    /// The queue to begin with.
    first: usize,
    /// The memory that requests were last in.
    memory: Kept,
    counters: Arc<Cells>,
    complaints: Complaints,
    troubles: Complaints,
    broken: bool,
    /// What an earlier driver wanted could not be waited for.
    unsettled: bool,
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<State>() == 16);

/// What the driver has negotiated: with the settings, all that a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Features that the driver chose; 0 before it is ready.
    pub features: u64,
    /// What it wrote to `writeback` (VIRTIO 1.2 §5.2.4).
    pub writeback: bool,
}

impl State {
    const NEW: Self = Self {
        features: 0,
        writeback: true,
    };
}

impl Block {
    /// Begins to make a disk of this file.
    #[expect(
        clippy::new_ret_no_self,
        reason = "as std's Command and OpenOptions are made, in steps"
    )]
    pub fn new(file: File) -> Builder {
        Builder::new(file)
    }

    /// Begins to make a disk of what is on this shelf, now and later.
    pub fn of_shelf(shelf: &Shelf) -> Builder {
        Builder::of_shelf(shelf)
    }

    pub(super) fn assemble(disk: Disk, settings: Settings) -> Result<Self, BuildError> {
        let layout = Layout {
            sectors: disk.sectors,
            block_bytes: disk.block_bytes,
            physical_block_bytes: disk.physical_block_bytes,
            read_only: settings.read_only,
            queues: settings.queues,
        };
        let events = Events::new(settings.rate_limit).map_err(BuildError::Events)?;
        let engine = settings.engine;
        let executor = Executor::new(disk, engine, events.finished())
            .map_err(|cause| BuildError::Engine { engine, cause })?;
        let nothing = Pending {
            queue: 0,
            head: 0,
            status: GuestAddress(0),
            work: Work::Flush,
            bytes: 0,
        };
        Ok(Self {
            settings,
            layout,
            negotiated: State::NEW,
            executor,
            events,
            pending: vec![nothing; IN_FLIGHT_MAX.into()],
            request: Request::default(),
            ranges: Ranges::default(),
            first: 0,
            memory: Kept::default(),
            counters: Arc::new(Cells::default()),
            complaints: Complaints::new("block"),
            troubles: Complaints::new("block"),
            broken: false,
            unsettled: false,
        })
    }

    /// Its size, in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.layout.sectors
    }

    /// How requests reach the disk: never [`Engine::Auto`].
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.executor.engine()
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.snapshot()
    }

    /// What the driver has negotiated, for a snapshot. Requests are not part of it: they are finished
    /// ([`Device::settled`]) before.
    #[must_use]
    pub fn state(&self) -> State {
        self.negotiated
    }

    /// Goes on where a device of the same settings was.
    pub fn restore(&mut self, state: State) {
        self.negotiated = state;
    }

    fn judge(&self) -> Judge {
        Judge {
            layout: self.layout,
            features: self.negotiated.features,
            unit: self.executor.disk.unit(),
        }
    }

    /// Whether writes are durable when they are reported (§5.2.5.1): the driver wants it so, or has no way
    /// to flush.
    fn durable(&self) -> bool {
        let has = |bit: u32| self.negotiated.features >> bit & 1 == 1;
        !has(VIRTIO_BLK_F_FLUSH) || has(VIRTIO_BLK_F_CONFIG_WCE) && !self.negotiated.writeback
    }

    /// Ends what the executor has; returns whether it has.
    fn settle(&mut self) -> bool {
        let settled = self.executor.settle(self.events.finished());
        self.executor.signal(true);
        settled
            .inspect_err(|cause| {
                self.troubles
                    .warn(&format_args!("requests cannot be waited for: {cause}"));
            })
            .is_ok()
    }

    /// The device is of no use while the kernel may still work for an earlier driver: the next reset tries
    /// again to wait for it.
    fn give_up(&mut self) -> Signals {
        self.broken = true;
        Signals {
            needs_reset: true,
            ..Signals::default()
        }
    }

    fn run(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Result<Signals, Fault> {
        let memory = self.memory.keep(memory);
        let mut budget = Budget::new();
        let mut moved = 0;
        self.executor.signal(false);
        loop {
            moved |= self.reap(&memory, queues, &mut budget)?;
            let before = budget;
            moved |= self.take_in_turn(queues, &memory, &mut budget)?;
            if let Err(cause) = self.executor.submit() {
                self.troubles
                    .warn(&format_args!("io_uring takes nothing now: {cause}"));
                self.events.wake();
            }
            if budget != before && !budget.is_spent() {
                continue;
            }
            self.executor.signal(true);
            if budget.is_spent() || !self.executor.has_finished() {
                break;
            }
            self.executor.signal(false);
        }
        if budget.is_spent() {
            self.events.wake();
        }
        signals(&memory, queues, moved)
    }

    /// Answers what the executor has finished; returns the queues of it.
    fn reap(
        &mut self,
        memory: &Arc<Memory>,
        queues: &mut [&mut Queue],
        budget: &mut Budget,
    ) -> Result<u64, Fault> {
        let mut moved = 0;
        while !budget.is_spent()
            && let Some(finished) = self.executor.finished()
        {
            let Some(&pending) = self.pending.get(usize::from(finished.token)) else {
                continue;
            };
            let Some(queue) = queues.get_mut(usize::from(pending.queue)) else {
                continue;
            };
            if finished.here {
                budget.take_bytes(weight(pending.work, pending.bytes, false));
            }
            self.conclude(pending, finished.result, queue, memory)
                .map_err(fault(pending.queue))?;
            moved |= 1 << pending.queue;
        }
        Ok(moved)
    }

    /// Takes requests off one queue after the other, until all are empty or something ends that; the next
    /// time begins with the queue whose turn it is then. Returns the queues on which some were answered.
    fn take_in_turn(
        &mut self,
        queues: &mut [&mut Queue],
        memory: &Arc<Memory>,
        budget: &mut Budget,
    ) -> Result<u64, Fault> {
        let mut moved = 0;
        let (count, first) = (queues.len(), self.first);
        for place in (first..first + count).map(|place| place % count) {
            let (Some(queue), Ok(index)) = (queues.get_mut(place), u16::try_from(place)) else {
                continue;
            };
            if !queue.ready() {
                continue;
            }
            let taken = self.take(index, queue, memory, budget).map_err(fault(index))?;
            moved |= u64::from(taken.answered) << index;
            if taken.refused {
                // One that got nothing has waited for what it needs, and gets it first.
                self.first = (place + usize::from(taken.some)) % count;
                break;
            }
        }
        Ok(moved)
    }

    /// Takes requests off a queue. Notifications stay off while there is more to take: the executor, the
    /// timer or the budget's end bring us back.
    fn take(
        &mut self,
        index: u16,
        queue: &mut Queue,
        memory: &Arc<Memory>,
        budget: &mut Budget,
    ) -> Result<Taken, virtio_queue::Error> {
        let mut taken = Taken::default();
        queue.disable_notification(&**memory)?;
        loop {
            if budget.is_spent() || !self.executor.has_room() || self.events.holds() {
                taken.refused = true;
                return Ok(taken);
            }
            let Some(chain) = queue.next_chain(&**memory)? else {
                if queue.enable_notification(&**memory)? {
                    continue;
                }
                return Ok(taken);
            };
            let head = chain.head_index();
            let loaded = self.request.load(&**memory, chain);
            match loaded {
                Ok(()) => match self.begin(index, head, queue, memory, budget)? {
                    Outcome::Answered => taken.answered = true,
                    Outcome::Running => {}
                    Outcome::Held => {
                        queue.go_to_previous_position();
                        self.counters.throttled.add(1);
                        taken.refused = true;
                        return Ok(taken);
                    }
                },
                Err(malformed) => {
                    self.counters.malformed.add(1);
                    self.complaints.warn(&malformed);
                    queue.add_used(&**memory, head, 0)?;
                    taken.answered = true;
                }
            }
            self.counters.requests.add(1);
            taken.some = true;
            budget.take_request();
        }
    }

    /// Judges the loaded request and begins with it.
    fn begin(
        &mut self,
        index: u16,
        head: u16,
        queue: &mut Queue,
        memory: &Arc<Memory>,
        budget: &mut Budget,
    ) -> Result<Outcome, virtio_queue::Error> {
        let mut pending = Pending {
            queue: index,
            head,
            status: self.request.status,
            work: Work::Flush,
            bytes: 0,
        };
        let work = match self.look(memory) {
            Ok(work) => work,
            Err(refusal) => return self.refuse(pending, refusal, queue, memory),
        };
        (pending.work, pending.bytes) = (work, work.bytes(&self.request, self.ranges.bytes()));
        if !self.events.permit(work.moves(pending.bytes)) {
            return Ok(Outcome::Held);
        }
        let begun = match self.execute(work, memory) {
            Ok(begun) => begun,
            Err(refusal) => return self.refuse(pending, refusal, queue, memory),
        };
        match begun {
            Begun::Done(result) => {
                let syncs = work == Work::Flush || work.writes() && self.durable();
                budget.take_bytes(weight(work, pending.bytes, syncs));
                self.conclude(pending, result, queue, memory)?;
                Ok(Outcome::Answered)
            }
            Begun::Running(token) => {
                budget.take_bytes(weight(work, pending.bytes, false));
                if let Some(place) = self.pending.get_mut(usize::from(token)) {
                    *place = pending;
                }
                Ok(Outcome::Running)
            }
        }
    }

    /// What the loaded request comes to, with its ranges.
    fn look(&mut self, memory: &Memory) -> Result<Work, Refusal> {
        let judge = self.judge();
        let work = judge.judge(&self.request)?;
        self.ranges.load(memory, &self.request, work, &judge)?;
        Ok(work)
    }

    fn execute(&mut self, work: Work, memory: &Arc<Memory>) -> Result<Begun, Refusal> {
        let (task, parts): (Task, &[Part]) = match work {
            Work::Read { offset } => (Task::Read { offset }, self.request.writable()),
            Work::Write { offset } => {
                let durable = self.durable();
                (Task::Write { offset, durable }, self.request.readable())
            }
            Work::Flush => (Task::Flush, &[]),
            Work::Serial => return self.tell_serial(memory).map(|()| Begun::Done(Ok(()))),
            Work::Discard { .. } | Work::WriteZeroes { .. } => {
                let zeroes = matches!(work, Work::WriteZeroes { .. });
                let cleared = self.ranges.clear(&self.executor.disk, zeroes, self.durable());
                return Ok(Begun::Done(cleared));
            }
        };
        let mut vectors = self.executor.vectors();
        vectors.load(memory, parts).map_err(|_| Refusal::Memory)?;
        Ok(self.executor.begin(task, vectors))
    }

    /// The serial, filled with zeroes (§5.2.6.1).
    fn tell_serial(&self, memory: &Memory) -> Result<(), Refusal> {
        let mut serial = [0; SERIAL_BYTES];
        let name = self.settings.serial.as_bytes();
        serial[..name.len()].copy_from_slice(name);
        let mut left = serial.as_slice();
        for &(address, len) in self.request.writable() {
            let (now, later) = left.split_at(len.min(left.len()));
            memory.write_slice(now, address).map_err(|_| Refusal::Memory)?;
            left = later;
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        pending: Pending,
        refusal: Refusal,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<Outcome, virtio_queue::Error> {
        self.counters.malformed.add(1);
        self.complaints.warn(&refusal);
        let status = match refusal.is_unsupported() {
            true => VIRTIO_BLK_S_UNSUPP,
            false => VIRTIO_BLK_S_IOERR,
        };
        // Data that the driver waits for comes before the status: none of it was written.
        let written = u32::from(self.request.writable_bytes() == 0);
        answer(pending, status, written, queue, memory)?;
        Ok(Outcome::Answered)
    }

    /// Answers a request that was carried out, or not.
    fn conclude(
        &mut self,
        pending: Pending,
        result: io::Result<()>,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<(), virtio_queue::Error> {
        let data = match pending.work {
            Work::Read { .. } => pending.bytes,
            Work::Serial => 20,
            _ => 0,
        };
        let Err(cause) = result else {
            self.count(pending);
            let written = u32::try_from(data + 1).unwrap_or(u32::MAX);
            return answer(pending, VIRTIO_BLK_S_OK, written, queue, memory);
        };
        self.counters.errors.add(1);
        self.troubles.warn(&format_args!(
            "{:?} of {} bytes: {cause}",
            pending.work, pending.bytes
        ));
        let status = match cause.kind() {
            io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        };
        answer(pending, status, u32::from(data == 0), queue, memory)
    }

    fn count(&self, pending: Pending) {
        let counters = &self.counters;
        match pending.work {
            Work::Read { .. } => {
                counters.reads.add(1);
                counters.bytes_read.add(pending.bytes);
            }
            Work::Write { .. } => {
                counters.writes.add(1);
                counters.bytes_written.add(pending.bytes);
            }
            Work::Flush => counters.flushes.add(1),
            Work::Discard { .. } | Work::WriteZeroes { .. } => counters.discards.add(1),
            Work::Serial => {}
        }
    }
}

/// What was taken off a queue.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// At least a request.
    some: bool,
    /// At least one has its answer.
    answered: bool,
    /// There may be more, which has to wait: for the next turn, its rate, or room in the executor.
    refused: bool,
}

/// What became of a request.
enum Outcome {
    /// It has its answer.
    Answered,
    /// The executor has it.
    Running,
    /// Its rate does not allow it yet.
    Held,
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        self.layout.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.settings.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        self.layout.config(self.negotiated.writeback)
    }

    /// Only `writeback` can be written (VIRTIO 1.2 §5.2.4), and means something where it is offered.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let at = WRITEBACK_OFFSET.checked_sub(offset);
        if let Some(&value) = at.and_then(|at| data.get(at)) {
            self.negotiated.writeback = value != 0;
        }
    }

    fn activate(&mut self, features: u64) {
        self.negotiated.features = features;
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.descriptor())
    }

    fn poll(&mut self) -> io::Result<()> {
        self.events.poll()
    }

    /// Takes requests and answers them. Queues that are not ready are not taken from, but what was taken
    /// from them before is answered there.
    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        if self.broken {
            return Signals::default();
        }
        if self.unsettled {
            return self.give_up();
        }
        self.run(memory, queues).unwrap_or_else(|fault| {
            self.complaints.warn(&fault);
            self.reset();
            self.give_up()
        })
    }

    /// Waits for what the kernel is working on, and gives up what it was not given: afterwards nothing
    /// touches the guest's memory, or the device stays broken.
    fn reset(&mut self) {
        self.counters.device_resets.add(1);
        self.negotiated = State::NEW;
        self.memory.forget();
        self.broken = false;
        self.unsettled = !self.settle();
    }

    fn drained(&self) -> bool {
        self.executor.in_flight() == 0
    }

    fn settled(&self) -> bool {
        self.drained()
    }

    fn meter(&self) -> Arc<dyn Meter> {
        let counters = Arc::clone(&self.counters);
        match &self.executor.disk.backing {
            Backing::File(_) => counters,
            Backing::Shelf(shelf) => Arc::new(Shelved::new(counters, shelf.clone())),
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block")
            .field("settings", &self.settings)
            .field("sectors", &self.layout.sectors)
            .field("engine", &self.engine())
            .field("counters", &self.counters.snapshot())
            .finish_non_exhaustive()
    }
}
