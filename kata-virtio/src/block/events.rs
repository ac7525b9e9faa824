//! The one descriptor that tells of everything on the host's side: finished requests, the worker's own
//! wish to go on, and the rate limit's timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::RateLimit;
use crate::rate_limit::Limiter;

/// See the module.
#[derive(Debug)]
pub(super) struct Events {
    wake: OwnedFd,
    limit: Option<Limited>,
}

#[derive(Debug)]
struct Limited {
    limiter: Limiter,
    /// Over the timer and the event.
    both: OwnedFd,
}

impl Events {
    /// # Errors
    /// When the process has no descriptors left.
    pub(super) fn new(limit: RateLimit) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let limit = (!limit.is_unlimited())
            .then(|| Limited::new(limit, wake.as_fd()))
            .transpose()?;
        Ok(Self { wake, limit })
    }

    /// What the worker waits on.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.limit
            .as_ref()
            .map_or(&self.wake, |limit| &limit.both)
            .as_fd()
    }

    /// What finished requests are signalled on.
    pub(super) fn finished(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the worker come back.
    pub(super) fn wake(&self) {
        if let Err(cause) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            log::debug!("block: the worker is awake already: {cause}");
        }
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(cause) => return Err(cause.into()),
        }
        self.limit.as_mut().map_or(Ok(()), |limit| limit.limiter.poll())
    }

    /// Whether the rate allows a request of so many bytes; otherwise the timer is set.
    pub(super) fn permit(&mut self, bytes: u64) -> bool {
        self.limit.as_mut().is_none_or(|limit| limit.limiter.take(bytes))
    }

    /// Whether requests wait for their rate.
    pub(super) fn holds(&self) -> bool {
        self.limit.as_ref().is_some_and(|limit| limit.limiter.waiting())
    }
}

impl Limited {
    fn new(limit: RateLimit, wake: BorrowedFd<'_>) -> io::Result<Self> {
        let limiter = Limiter::new(limit)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for member in [wake, limiter.timer()] {
            epoll::add(&both, member, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Self { limiter, both })
    }
}
