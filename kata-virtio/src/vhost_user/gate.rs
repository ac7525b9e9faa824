//! The device's side on the host, as the worker watches it: not at all while nobody acts on it.
//!
//! ```text
//!   Closed ── a queue runs, or output waits ──► Open ── neither ──► Closed
//! ```
//!
//! Owns an event between the framework's and the device's: the framework's is told once, before there is
//! a queue. Knows no queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    epoll: OwnedFd,
    open: bool,
}

impl Gate {
    /// A closed one.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            open: false,
        })
    }

    /// Readable when it is open and the device's events are.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Opens or closes it for these events, always the same.
    pub(super) fn set(&mut self, events: BorrowedFd<'_>, open: bool) -> Result<(), Errno> {
        if open == self.open {
            return Ok(());
        }
        if open {
            epoll::add(&self.epoll, events, EventData::new_u64(0), EventFlags::IN)?;
        } else {
            epoll::delete(&self.epoll, events)?;
        }
        self.open = open;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    use super::*;

    #[test]
    fn only_what_is_open_is_heard() {
        let mut gate = Gate::new().unwrap();
        let event = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        for open in [false, true, true, false, false, true] {
            gate.set(event.as_fd(), open).unwrap();
            let mut fds = [PollFd::from_borrowed_fd(gate.events(), PollFlags::IN)];
            let heard = poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap();
            assert_eq!(heard == 1, open);
        }
    }
}
