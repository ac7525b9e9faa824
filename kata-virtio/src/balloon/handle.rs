//! The host's side of the balloon: what it wants, what it asks, what it has been told; from any thread.
//!
//! Owns what device and handle share; knows no queue and no memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::PAGE_BYTES;
use super::config::bytes_of;
use super::statistics::Statistics;
use crate::Meter;

/// Who asked for statistics.
pub(super) type Answer = Box<dyn FnOnce(Statistics) + Send>;

/// Questions for statistics that can wait.
const MOST_QUESTIONS: usize = 64;

/// Those that wait; `None` when the device is gone.
type Questions = Option<VecDeque<Answer>>;

/// Tells the balloon what to do, and asks it. Cloneable, for any thread.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

/// What device and handle share.
pub(super) struct Shared {
    target: AtomicU32,
    actual: AtomicU32,
    /// Wakes the device.
    wake: OwnedFd,
    questions: Mutex<Questions>,
    pub(super) figures: Figures,
}

/// What the balloon has done so far.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Free pages that the driver reported.
    pub(super) reported: Count,
    /// Pages that the driver put into the balloon.
    pub(super) inflated: Count,
    /// Pages that the driver took out again.
    pub(super) deflated: Count,
    /// Memory that was given back to the host.
    pub(super) discarded: Count,
    /// Memory that could have been, but for a poison.
    pub(super) kept: Count,
    /// Calls of the host that failed, and memory that must not be given back.
    pub(super) errors: Count,
    /// Requests that broke a rule.
    pub(super) malformed: Count,
    /// Times that the driver reset the device, or broke a queue.
    pub(super) resets: Count,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Handle {
    /// Asks the guest to have this much of its memory in the balloon, rounded down to pages of 4 KiB and
    /// at most 16 TiB. It complies as it can; [`actual_bytes`](Self::actual_bytes) says how far it is.
    pub fn set_target_bytes(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        if self.shared.target.swap(pages, Ordering::Relaxed) != pages {
            self.shared.wake();
        }
    }

    /// Bytes that the guest was last asked to have in the balloon.
    #[must_use]
    pub fn target_bytes(&self) -> u64 {
        bytes_of(self.shared.target())
    }

    /// Bytes that are in the balloon, as the guest says.
    #[must_use]
    pub fn actual_bytes(&self) -> u64 {
        bytes_of(self.shared.actual.load(Ordering::Relaxed))
    }

    /// Asks the guest for its statistics. `then` is called with them on the device's thread, so it must
    /// not wait, or never: when the driver did not choose the feature, or resets the device, or the device
    /// is gone, it is dropped. Before there is a driver, a question waits for it; and a guest may take any
    /// time to answer. At most 64 questions wait, whether or not the device is served: the oldest is
    /// dropped, on this thread, for another.
    ///
    /// To wait for them: send them through a channel, whose receiver also sees the drop.
    pub fn statistics(&self, then: impl FnOnce(Statistics) + Send + 'static) {
        let dropped = self.shared.ask(Box::new(then));
        self.shared.wake();
        drop(dropped);
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("target_bytes", &self.target_bytes())
            .field("actual_bytes", &self.actual_bytes())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            questions: Mutex::new(Some(VecDeque::new())),
            figures: Figures::default(),
        })
    }

    /// Readable after [`wake`](Self::wake).
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Adds one to the event; it can only fail when 2⁶⁴ wakes wait already, and then it is readable.
    pub(super) fn wake(&self) {
        if let Err(cause) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            log::debug!("balloon: the worker is awake already: {cause}");
        }
    }

    /// Takes note of wakes.
    pub(super) fn asleep(&self) -> io::Result<()> {
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// A question waits; returns what has to go for it: the oldest, or itself when the device is gone.
    fn ask(&self, answer: Answer) -> Option<Answer> {
        let mut questions = self.questions();
        let Some(waiting) = questions.as_mut() else {
            return Some(answer);
        };
        waiting.push_back(answer);
        if waiting.len() > MOST_QUESTIONS {
            waiting.pop_front()
        } else {
            None
        }
    }

    /// Whether anybody waits for statistics.
    pub(super) fn is_asked(&self) -> bool {
        self.questions()
            .as_ref()
            .is_some_and(|waiting| !waiting.is_empty())
    }

    /// The questions so far, to be answered or dropped.
    pub(super) fn take_questions(&self) -> VecDeque<Answer> {
        self.questions().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The device is gone: nobody can ask any more.
    pub(super) fn close(&self) {
        let waiting = self.questions().take();
        drop(waiting);
    }

    /// Never held while an answer is called or dropped: those are the host's code.
    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn target(&self) -> u32 {
        self.target.load(Ordering::Relaxed)
    }

    pub(super) fn set_target(&self, pages: u32) {
        self.target.store(pages, Ordering::Relaxed);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Relaxed);
    }
}

impl Meter for Shared {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let figures = &self.figures;
        vec![
            ("target_bytes", bytes_of(self.target())),
            ("actual_bytes", bytes_of(self.actual.load(Ordering::Relaxed))),
            ("reported_bytes", figures.reported.now()),
            ("inflated_bytes", figures.inflated.now()),
            ("deflated_bytes", figures.deflated.now()),
            ("discarded_bytes", figures.discarded.now()),
            ("kept_bytes", figures.kept.now()),
            ("errors", figures.errors.now()),
            ("malformed", figures.malformed.now()),
            ("device_resets", figures.resets.now()),
        ]
    }
}

impl Count {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
