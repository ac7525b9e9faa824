//! What the console has done so far, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the worker, read by anyone.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Bytes taken from the guest.
    pub(super) from_guest: Count,
    /// Bytes given to the guest.
    pub(super) to_guest: Count,
    /// Bytes of the guest that the host did not take in time, or at all.
    pub(super) dropped: Count,
    /// Chains that broke a rule.
    pub(super) malformed: Count,
    /// Times that a descriptor of the host failed.
    pub(super) errors: Count,
    /// Times that the driver reset the device, or broke a queue.
    pub(super) resets: Count,
}

impl crate::Meter for Figures {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes_from_guest", self.from_guest.now()),
            ("bytes_to_guest", self.to_guest.now()),
            ("bytes_dropped", self.dropped.now()),
            ("malformed", self.malformed.now()),
            ("errors", self.errors.now()),
            ("device_resets", self.resets.now()),
        ]
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: usize) {
        self.0
            .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
