//! The balloon's queues and its statistics (VIRTIO 1.2 §5.5.2, §5.5.6.3).
//!
//! Knows guest memory and the handle's wishes; not the transport that set the queues up.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::config::Config;
use super::handle::{Handle, Shared};
use super::pages::Range;
use super::requests::{About, Budget, RequestError};
use super::statistics::{MOST_BYTES, Statistics};
use super::{
    F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING, F_STATS_VQ, PAGE_BYTES, REPORTING_QUEUE_BY_THE_BOOK,
};
use crate::buffers::{Buffers, Direction};
use crate::complaint::Complaints;
use crate::queue::Chains;
use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Queues, with and without free page reporting.
const QUEUES: usize = REPORTING_QUEUE_BY_THE_BOOK as usize + 1;
const QUEUES_WITHOUT_REPORTING: usize = 3;

/// Entries of each queue. Linux reports 32 ranges at once and refuses a shorter queue.
const QUEUE_SIZE: u16 = 32;

/// The device: moved into the worker that serves it.
pub struct Balloon {
    pub(super) shared: Arc<Shared>,
    reporting: bool,
    pub(super) config: Config,
    config_changed: bool,
    pub(super) features: u64,
    broken: bool,
    /// Bytes done of the chain that each queue gives next: of page numbers, or of reported memory.
    pub(super) done: [u64; QUEUES],
    /// The chain that waits for the next question.
    held: Option<u16>,
    pub(super) buffers: Buffers,
    pub(super) ranges: Vec<Range>,
    pub(super) host_page_bytes: u64,
    pub(super) complaints: Complaints,
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<State>() == 64);

/// What a balloon is between two turns: for a snapshot. Questions for statistics are not part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    target_pages: u32,
    actual_pages: u32,
    poison: u32,
    features: u64,
    done: [u64; QUEUES],
    held: Option<u16>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Pages(About),
    Statistics,
}

/// A queue that the driver has broken beyond a chain.
#[derive(Debug, thiserror::Error)]
#[error("queue {index} is broken and stays so until the driver resets the device: {cause}")]
struct Fault {
    index: u16,
    cause: virtio_queue::Error,
}

impl Balloon {
    /// A balloon with nothing in it, which takes reports of free pages, and its handle.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<(Self, Handle)> {
        let shared = Arc::new(Shared::new()?);
        let handle = Handle {
            shared: Arc::clone(&shared),
        };
        let device = Self {
            shared,
            reporting: true,
            config: Config::default(),
            config_changed: false,
            features: 0,
            broken: false,
            done: [0; QUEUES],
            held: None,
            buffers: Buffers::default(),
            ranges: Vec::new(),
            host_page_bytes: u64::try_from(rustix::param::page_size())
                .unwrap_or(PAGE_BYTES)
                .max(PAGE_BYTES),
            complaints: Complaints::new("balloon"),
        };
        Ok((device, handle))
    }

    /// The same without free page reporting: what the guest frees stays with it, unless the balloon is
    /// inflated.
    #[must_use]
    pub fn without_reporting(mut self) -> Self {
        self.reporting = false;
        self
    }

    /// What it is now; complete only while no turn runs.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            target_pages: self.config.target,
            actual_pages: self.config.actual,
            poison: self.config.poison,
            features: self.features,
            done: self.done,
            held: self.held,
        }
    }

    /// Goes on from `state`, on queues that are where they were. The target is the state's until the
    /// handle changes it.
    pub fn restore(&mut self, state: &State) {
        self.config = Config {
            target: state.target_pages,
            actual: state.actual_pages,
            poison: state.poison,
        };
        self.features = state.features;
        self.done = state.done;
        self.held = state.held;
        self.shared.set_target(self.config.target);
        self.shared.set_actual(self.config.actual);
    }

    /// See the module for the numbers.
    fn role(&self, index: u16) -> Option<Role> {
        let chosen = |feature| self.features & feature != 0;
        match index {
            0 => Some(Role::Pages(About::Inflate)),
            1 => Some(Role::Pages(About::Deflate)),
            2 if chosen(F_STATS_VQ) => Some(Role::Statistics),
            2..=REPORTING_QUEUE_BY_THE_BOOK if chosen(F_REPORTING) => Some(Role::Pages(About::Free)),
            _ => None,
        }
    }

    fn run(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Result<Signals, Fault> {
        let mut signals = Signals::default();
        for (index, queue) in (0u16..).zip(queues) {
            let Some(role) = self.role(index).filter(|_| queue.ready()) else {
                continue;
            };
            let waits = self.turn(memory, queue, index, role);
            signals = signals.with_queue(index, waits.map_err(|cause| Fault { index, cause })?);
        }
        Ok(signals)
    }

    /// Serves a queue; returns whether the driver waits for a signal.
    fn turn(
        &mut self,
        memory: &Memory,
        queue: &mut Queue,
        index: u16,
        role: Role,
    ) -> Result<bool, virtio_queue::Error> {
        let before = queue.next_used();
        let mut budget = Budget::new();
        match role {
            Role::Pages(about) => self.take_pages(memory, queue, usize::from(index), about, &mut budget)?,
            Role::Statistics => {
                self.take_statistics(memory, queue, &mut budget)?;
                self.ask(memory, queue)?;
            }
        }
        if budget.spent() {
            self.shared.wake();
        }
        Ok(queue.next_used() != before && queue.needs_notification(memory)?)
    }

    /// The driver's statistics, for everybody who waits; the buffer is held for the next question
    /// (VIRTIO 1.2 §5.5.6.3).
    fn take_statistics(
        &mut self,
        memory: &Memory,
        queue: &mut Queue,
        budget: &mut Budget,
    ) -> Result<(), virtio_queue::Error> {
        queue.disable_notification(memory)?;
        while !budget.spent() {
            let Some(chain) = queue.next_chain(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            budget.call();
            let head = chain.head_index();
            let loaded = self.buffers.load(chain, queue.size(), Direction::Readable);
            let read = loaded
                .map_err(RequestError::from)
                .and_then(|()| self.read_statistics(memory));
            match read {
                Ok(statistics) => {
                    self.held = Some(head);
                    for answer in self.shared.take_questions() {
                        answer(statistics);
                    }
                }
                Err(error) => {
                    self.complain(&error);
                    queue.add_used(memory, head, 0)?;
                }
            }
        }
        Ok(())
    }

    fn read_statistics(&self, memory: &Memory) -> Result<Statistics, RequestError> {
        if self.held.is_some() {
            return Err(RequestError::SecondBuffer);
        }
        let mut bytes = [0; MOST_BYTES];
        let bytes = &mut bytes[..self.buffers.bytes().min(MOST_BYTES)];
        self.buffers.read(memory, 0, bytes)?;
        Ok(Statistics::parse(bytes))
    }

    /// Returns the buffer if somebody waits for what comes back in it.
    fn ask(&mut self, memory: &Memory, queue: &mut Queue) -> Result<(), virtio_queue::Error> {
        if self.shared.is_asked()
            && let Some(head) = self.held.take()
        {
            queue.add_used(memory, head, 0)?;
        }
        Ok(())
    }

    pub(super) fn complain(&mut self, about: &dyn std::fmt::Display) {
        self.shared.figures.malformed.add(1);
        self.complaints.warn(about);
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        let reporting = if self.reporting {
            F_REPORTING | F_PAGE_POISON
        } else {
            0
        };
        COMMON_FEATURES | F_STATS_VQ | F_DEFLATE_ON_OOM | reporting
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let count = if self.reporting {
            QUEUES
        } else {
            QUEUES_WITHOUT_REPORTING
        };
        vec![QUEUE_SIZE; count]
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_bytes().to_vec()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.shared.set_actual(self.config.actual);
    }

    fn activate(&mut self, features: u64) {
        self.features = features & self.features();
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.events())
    }

    fn poll(&mut self) -> io::Result<()> {
        self.shared.asleep()?;
        let target = self.shared.target();
        self.config_changed |= target != self.config.target;
        self.config.target = target;
        Ok(())
    }

    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        if self.broken {
            return Signals::default();
        }
        if self.features & F_STATS_VQ == 0 {
            drop(self.shared.take_questions());
        }
        let mut signals = self.run(memory, queues).unwrap_or_else(|fault| {
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

    /// The balloon is empty again; the target stays, and questions that no driver has seen.
    fn reset(&mut self) {
        self.shared.figures.resets.add(1);
        if self.features != 0 {
            drop(self.shared.take_questions());
        }
        self.config.actual = 0;
        self.config.poison = 0;
        self.shared.set_actual(0);
        self.features = 0;
        self.done = [0; QUEUES];
        self.held = None;
        self.broken = false;
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.shared) as Arc<dyn Meter>
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balloon")
            .field("config", &self.config)
            .field("features", &self.features)
            .field("asked", &self.shared.is_asked())
            .finish_non_exhaustive()
    }
}
