//! What the device has done so far, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// A snapshot of the device's counters.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)+ }

        /// The counters themselves: written by the worker, read by anyone.
        #[derive(Debug, Default)]
        pub(crate) struct Cells { $(pub(crate) $name: Cell,)+ }

        impl Cells {
            pub(crate) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }

        impl crate::Meter for Cells {
            fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.0.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

counters! {
    /// Connections that the device knows now, also those whose last bytes still go to the host.
    connections_open,
    /// Connections that were opened or asked for, ever.
    connections_total,
    /// Connections that either side refused.
    connections_refused,
    /// Packets taken from the guest.
    packets_from_guest,
    /// Packets given to the guest.
    packets_to_guest,
    /// Payload bytes taken from the guest.
    bytes_from_guest,
    /// Payload bytes given to the guest.
    bytes_to_guest,
    /// Payload bytes taken from the guest that wait for a host stream to drain.
    bytes_buffered,
    /// Chains and packets of the guest that broke a rule.
    packets_malformed,
    /// Resets sent to the guest.
    resets_sent,
    /// Times that the guest was reset, or its queues broke.
    device_resets,
}

#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    pub(crate) fn add(&self, count: usize) {
        self.0
            .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, count: usize) {
        self.0
            .fetch_sub(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
