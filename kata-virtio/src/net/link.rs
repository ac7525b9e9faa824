//! The cable: what any thread does to it, and how the worker hears of that.
//!
//! Knows no tap and no queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Pulls the cable from any thread, and plugs it in.
#[derive(Debug, Clone)]
pub struct Handle(pub(super) Arc<Link>);

/// What device and handle share.
#[derive(Debug)]
pub(super) struct Link {
    up: AtomicBool,
    wake: OwnedFd,
}

impl Handle {
    /// Plugs the cable in or pulls it: the driver is told, and frames no longer pass. Those that the
    /// guest sends meanwhile are lost; those of the host wait in the interface as long as it keeps them.
    pub fn set_link(&self, up: bool) {
        self.0.up.store(up, Ordering::Release);
        self.0.wake();
    }

    /// Whether the cable is plugged in. A tap that is gone does not pull it.
    #[must_use]
    pub fn link_up(&self) -> bool {
        self.0.is_up()
    }
}

impl Link {
    /// A cable that is plugged in.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            up: AtomicBool::new(true),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Readable after [`wake`](Self::wake).
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Wakes the worker; it can only fail when 2⁶⁴ wakes wait already, and then it is awake.
    pub(super) fn wake(&self) {
        if let Err(cause) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            log::debug!("net: the worker is awake already: {cause}");
        }
    }

    /// Takes note of wakes.
    pub(super) fn calm(&self) -> io::Result<()> {
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }
}
