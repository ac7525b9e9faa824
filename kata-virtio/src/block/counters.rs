//! What the device has done so far, readable from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shelf::Shelf;
use crate::Meter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A snapshot of the device's counters.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)+ }

        /// The counters themselves: written by the worker, read by anyone.
        #[derive(Debug, Default)]
        pub(super) struct Cells { $(pub(super) $name: Cell,)+ }

        impl Cells {
            pub(super) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.get(),)+ }
            }
        }

        impl Meter for Cells {
            fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Chains taken from the driver, whatever was in them.
    requests,
    /// Reads that succeeded.
    reads,
    /// Writes that succeeded.
    writes,
    /// Flushes that succeeded.
    flushes,
    /// Discards and writes of zeroes that succeeded.
    discards,
    /// Bytes that the driver read.
    bytes_read,
    /// Bytes that the driver wrote.
    bytes_written,
    /// Sound requests that the host could not carry out.
    errors,
    /// Times that requests waited for their rate.
    throttled,
    /// Chains without a request, and requests that break a rule.
    malformed,
    /// Times that the driver reset the device, or broke its queues.
    device_resets,
}

#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a disk of extents, and what is on its shelf.
#[derive(Debug)]
pub(super) struct Shelved {
    counters: Arc<Cells>,
    shelf: Shelf,
}

impl Shelved {
    pub(super) fn new(counters: Arc<Cells>, shelf: Shelf) -> Self {
        Self { counters, shelf }
    }
}

impl Meter for Shelved {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let (count, bytes) = self.shelf.figures();
        let mut figures = self.counters.figures();
        figures.extend([("extents", count), ("extent_bytes", bytes)]);
        figures
    }
}
