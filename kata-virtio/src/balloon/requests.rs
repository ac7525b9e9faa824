//! Requests about pages: inflate, deflate, free page reports (VIRTIO 1.2 §5.5.6).
//!
//! Owns how a request is taken: parsed to sorted ranges, which are given back a part per turn. Knows
//! nothing of statistics and of the host's wishes.

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::device::Balloon;
use super::discard::{After, DiscardError, Fate, discard, first_piece};
use super::handle::Count;
use super::pages::{self, NUMBER_BYTES, Range};
use super::{F_PAGE_POISON, PAGE_BYTES};
use crate::Memory;
use crate::buffers::{ChainError, Direction};
use crate::queue::Chains;

/// Page numbers that are looked at together: Linux' requests have as many.
const CHUNK_BYTES: usize = 256 * NUMBER_BYTES;

/// Calls of the host, or requests that need none, in one turn of one queue.
const TURN_CALLS: usize = 256;

/// Memory given back in one turn of one queue.
const TURN_BYTES: u64 = 64 << 20;

/// What a request says about its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Inflate,
    Deflate,
    Free,
}

/// What is left of a queue's turn.
pub(super) struct Budget {
    calls: usize,
    bytes: u64,
}

/// How far a chain was taken.
enum Step {
    Done,
    /// The turn is over first.
    Unfinished,
}

/// A request that is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("{0} bytes of page numbers")]
    Cut(usize),
    #[error("report without a whole page")]
    NoPage,
    #[error("second buffer for statistics")]
    SecondBuffer,
}

impl Balloon {
    /// Requests about pages.
    pub(super) fn take_pages(
        &mut self,
        memory: &Memory,
        queue: &mut Queue,
        index: usize,
        about: About,
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
            let loaded = self.buffers.load(chain, queue.size(), about.direction());
            let mut done = self.done[index];
            let step = loaded
                .map_err(RequestError::from)
                .and_then(|()| self.request(memory, about, &mut done, budget));
            match step {
                Ok(Step::Done) => {}
                Ok(Step::Unfinished) => {
                    self.done[index] = done;
                    queue.go_to_previous_position();
                    return Ok(());
                }
                Err(error) => self.complain(&error),
            }
            self.done[index] = 0;
            queue.add_used(memory, head, 0)?;
        }
        Ok(())
    }

    /// The loaded request, from where it was left.
    fn request(
        &mut self,
        memory: &Memory,
        about: About,
        done: &mut u64,
        budget: &mut Budget,
    ) -> Result<Step, RequestError> {
        match about {
            About::Free => self.report(memory, done, budget),
            About::Inflate => self.inflate(memory, done, budget),
            About::Deflate => self.deflate(),
        }
    }

    /// Free pages: the buffers themselves (VIRTIO 1.2 §5.5.6, Free Page Reporting).
    fn report(&mut self, memory: &Memory, done: &mut u64, budget: &mut Budget) -> Result<Step, RequestError> {
        let mut ranges = std::mem::take(&mut self.ranges);
        pages::of_buffers(self.buffers.parts(), &mut ranges);
        pages::merge(&mut ranges, self.host_page_bytes);
        let step = self.report_ranges(memory, &ranges, done, budget);
        let empty = ranges.is_empty();
        self.ranges = ranges;
        if empty {
            return Err(RequestError::NoPage);
        }
        Ok(step)
    }

    fn report_ranges(
        &mut self,
        memory: &Memory,
        ranges: &[Range],
        done: &mut u64,
        budget: &mut Budget,
    ) -> Step {
        let mut skip = *done;
        for &range in ranges {
            let mut left = range;
            left.start += skip.min(range.bytes());
            skip -= left.start - range.start;
            while left.bytes() > 0 {
                if budget.spent() {
                    return Step::Unfinished;
                }
                let mut piece = first_piece(memory, left);
                piece.end = piece.end.min(piece.start.saturating_add(budget.bytes));
                left.start = piece.end;
                *done += piece.bytes();
                budget.piece(piece);
                let fate = discard(memory, piece, self.free_pages());
                self.count(&self.shared.figures.reported, piece, &fate);
                self.note(fate);
            }
        }
        Step::Done
    }

    /// What the driver must find in a page that it has reported. One that has chosen the poison, and has
    /// none, counts on zeroes (`want_init_on_free` in Linux).
    fn free_pages(&self) -> After {
        match (self.features & F_PAGE_POISON != 0, self.config.poison) {
            (false, _) => After::Anything,
            (true, 0) => After::Zeroes,
            (true, _) => After::Unchanged,
        }
    }

    /// Page numbers, a chunk at a time.
    fn inflate(
        &mut self,
        memory: &Memory,
        done: &mut u64,
        budget: &mut Budget,
    ) -> Result<Step, RequestError> {
        let total = self.numbers()?;
        let mut from = usize::try_from(*done).unwrap_or(usize::MAX);
        let mut ranges = std::mem::take(&mut self.ranges);
        let mut step = Ok(Step::Done);
        while from < total {
            if budget.spent() {
                step = Ok(Step::Unfinished);
                break;
            }
            budget.call();
            let mut chunk = [0; CHUNK_BYTES];
            let chunk = &mut chunk[..CHUNK_BYTES.min(total - from)];
            if let Err(error) = self.buffers.read(memory, from, chunk) {
                step = Err(error.into());
                break;
            }
            pages::of_numbers(chunk, &mut ranges);
            pages::merge(&mut ranges, self.host_page_bytes);
            for &range in &ranges {
                self.inflate_range(memory, range, budget);
            }
            from += chunk.len();
            *done += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        }
        self.ranges = ranges;
        step
    }

    fn inflate_range(&mut self, memory: &Memory, mut left: Range, budget: &mut Budget) {
        while left.bytes() > 0 {
            let piece = first_piece(memory, left);
            left.start = piece.end;
            budget.piece(piece);
            let fate = discard(memory, piece, After::Anything);
            self.count(&self.shared.figures.inflated, piece, &fate);
            self.note(fate);
        }
    }

    /// The driver uses these pages again: there is nothing to do for it.
    fn deflate(&mut self) -> Result<Step, RequestError> {
        let pages = u64::try_from(self.numbers()? / NUMBER_BYTES).unwrap_or(u64::MAX);
        self.shared.figures.deflated.add(pages.saturating_mul(PAGE_BYTES));
        Ok(Step::Done)
    }

    /// Bytes of page numbers in the loaded chain.
    fn numbers(&self) -> Result<usize, RequestError> {
        let bytes = self.buffers.bytes();
        if !bytes.is_multiple_of(NUMBER_BYTES) {
            return Err(RequestError::Cut(bytes));
        }
        Ok(bytes)
    }

    /// `said` is the figure of what the driver said.
    fn count(&self, said: &Count, piece: Range, fate: &Result<Fate, DiscardError>) {
        let figures = &self.shared.figures;
        match fate {
            Ok(Fate::Discarded) => figures.discarded.add(piece.bytes()),
            Ok(Fate::Kept) => figures.kept.add(piece.bytes()),
            Err(DiscardError::Outside { .. }) => return,
            Err(_) => figures.errors.add(1),
        }
        said.add(piece.bytes());
    }

    fn note(&mut self, fate: Result<Fate, DiscardError>) {
        match fate {
            Ok(_) => {}
            Err(error @ DiscardError::Outside { .. }) => self.complain(&error),
            Err(error) => self.complaints.warn(&error),
        }
    }
}

impl About {
    /// Page numbers are read; reported memory is the device's to write (it never does).
    fn direction(self) -> Direction {
        match self {
            Self::Free => Direction::Writable,
            Self::Inflate | Self::Deflate => Direction::Readable,
        }
    }
}

impl Budget {
    /// That of a turn.
    pub(super) fn new() -> Self {
        Self {
            calls: TURN_CALLS,
            bytes: TURN_BYTES,
        }
    }

    pub(super) fn spent(&self) -> bool {
        self.calls == 0 || self.bytes == 0
    }

    /// A call, or a chunk of a request.
    pub(super) fn call(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    fn piece(&mut self, piece: Range) {
        self.call();
        self.bytes = self.bytes.saturating_sub(piece.bytes());
    }
}
