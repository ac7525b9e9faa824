//! What the device has done so far, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Meter;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Count {
    /// Frames that the host's side took.
    FramesFromGuest,
    /// Their bytes.
    BytesFromGuest,
    /// Frames given to the driver.
    FramesToGuest,
    /// Their bytes.
    BytesToGuest,
    /// Sound frames of the guest that nobody took.
    DroppedFromGuest,
    /// Frames of the host that no buffer of the driver can hold, or that it does not understand.
    DroppedToGuest,
    /// Chains, frames and commands of the driver that broke a rule.
    Malformed,
    /// Times that a direction waited for its rate.
    Throttled,
    /// Times that frames waited for receive buffers.
    ReceiveStalls,
    /// Times that frames of the guest waited for the host.
    TransmitStalls,
    /// Times that the driver reset the device, or broke its queues.
    DeviceResets,
}

const NAMES: [&str; 11] = [
    "frames_from_guest",
    "bytes_from_guest",
    "frames_to_guest",
    "bytes_to_guest",
    "dropped_from_guest",
    "dropped_to_guest",
    "malformed",
    "throttled",
    "receive_stalls",
    "transmit_stalls",
    "device_resets",
];

/// Written by the worker, read by anyone.
#[derive(Debug, Default)]
pub(super) struct Cells([AtomicU64; NAMES.len()]);

impl Cells {
    pub(super) fn add(&self, count: Count, amount: usize) {
        let amount = u64::try_from(amount).unwrap_or(u64::MAX);
        self.0[count as usize].fetch_add(amount, Ordering::Relaxed);
    }
}

impl Meter for Cells {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let values = self.0.iter().map(|cell| cell.load(Ordering::Relaxed));
        NAMES.into_iter().zip(values).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_has_its_name() {
        let cells = Cells::default();
        cells.add(Count::FramesFromGuest, 1);
        cells.add(Count::Malformed, 7);
        cells.add(Count::DeviceResets, 11);
        let figures = cells.figures();
        assert_eq!(figures[0], ("frames_from_guest", 1));
        assert_eq!(figures[6], ("malformed", 7));
        assert_eq!(figures.last(), Some(&("device_resets", 11)));
    }
}
