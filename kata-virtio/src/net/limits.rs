//! How much may pass in a time, in each direction, over all pairs of queues together.
//!
//! Owns the two limiters; knows frames by their length only.

use std::io;
use std::os::fd::BorrowedFd;

use super::counters::{Cells, Count};
use crate::rate_limit::{Limiter, RateLimit};

/// See the module; the default limits nothing.
#[derive(Debug, Default)]
pub(super) struct Limits {
    from_guest: Option<Limiter>,
    to_guest: Option<Limiter>,
}

impl Limits {
    pub(super) fn new(from_guest: RateLimit, to_guest: RateLimit) -> io::Result<Self> {
        Ok(Self {
            from_guest: limiter(from_guest)?,
            to_guest: limiter(to_guest)?,
        })
    }

    /// Whether a frame of the guest may pass now; if not, a timer says when to ask again.
    pub(super) fn permit_from_guest(&mut self, bytes: usize, counters: &Cells) -> bool {
        permit(self.from_guest.as_mut(), bytes, counters)
    }

    /// Whether a frame of the host may pass now.
    pub(super) fn permit_to_guest(&mut self, bytes: usize, counters: &Cells) -> bool {
        permit(self.to_guest.as_mut(), bytes, counters)
    }

    /// Readable when a direction can go on.
    pub(super) fn timers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.from_guest.iter().chain(&self.to_guest).map(Limiter::timer)
    }

    /// Takes note of timers that are readable.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        let mut limiters = self.from_guest.iter_mut().chain(&mut self.to_guest);
        limiters.try_for_each(Limiter::poll)
    }
}

fn limiter(limit: RateLimit) -> io::Result<Option<Limiter>> {
    (!limit.is_unlimited()).then(|| Limiter::new(limit)).transpose()
}

fn permit(limiter: Option<&mut Limiter>, bytes: usize, counters: &Cells) -> bool {
    let Some(limiter) = limiter else { return true };
    let waited = limiter.waiting();
    let granted = limiter.take(u64::try_from(bytes).unwrap_or(u64::MAX));
    counters.add(Count::Throttled, usize::from(!granted && !waited));
    granted
}
