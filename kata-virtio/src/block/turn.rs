//! How much one call of the device does: the worker looks at everything else in between, and what was
//! answered is signalled.
//!
//! Pure; knows no queues and no disk.

use super::verdict::Work;

/// Requests of one turn.
const REQUESTS: u16 = 128;

/// Bytes of one turn, a few milliseconds of a disk. The request that goes beyond is carried out whole, so
/// a turn is this and one request of the largest size at most.
const BYTES: u64 = 4 << 20;

/// What making writes durable in this thread weighs: as long as a disk takes to move about so much.
const SYNC_BYTES: u64 = 256 << 10;

/// Bytes of a discard that weigh as one that is moved: they are given back by extents.
const DISCARDED_PER_BYTE: u64 = 256;

/// What is left of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    requests: u16,
    bytes: u64,
}

impl Budget {
    /// That of a new turn.
    pub(super) fn new() -> Self {
        Self {
            requests: REQUESTS,
            bytes: BYTES,
        }
    }

    /// Whether the turn is over.
    pub(super) fn is_spent(self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    /// A request was taken.
    pub(super) fn take_request(&mut self) {
        self.requests = self.requests.saturating_sub(1);
    }

    /// Work was done that weighs so much.
    pub(super) fn take_bytes(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What work weighs in a turn, in bytes. `syncs` when this thread has waited until it was durable.
pub(super) fn weight(work: Work, bytes: u64, syncs: bool) -> u64 {
    let moved = match work {
        Work::Read { .. } | Work::Write { .. } | Work::WriteZeroes { .. } => bytes,
        Work::Discard { .. } => bytes / DISCARDED_PER_BYTE,
        Work::Flush | Work::Serial => 0,
    };
    moved + if syncs { SYNC_BYTES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests of this weight a turn takes.
    fn requests_of(weight: u64) -> u32 {
        let mut budget = Budget::new();
        let mut requests = 0;
        while !budget.is_spent() {
            budget.take_request();
            budget.take_bytes(weight);
            requests += 1;
        }
        requests
    }

    #[test]
    fn a_turn_ends_by_requests_or_by_bytes() {
        let read = |bytes| weight(Work::Read { offset: 0 }, bytes, false);
        assert_eq!(requests_of(read(512)), 128);
        assert_eq!(requests_of(read(1 << 20)), 4);
        assert_eq!(requests_of(read(16 << 20)), 1);
        assert_eq!(requests_of(weight(Work::Flush, 0, true)), 16);
        assert_eq!(requests_of(weight(Work::Flush, 0, false)), 128);
        assert_eq!(
            requests_of(weight(Work::Discard { ranges: 1 }, 1 << 30, false)),
            1
        );
        assert_eq!(
            requests_of(weight(Work::WriteZeroes { ranges: 1 }, 8 << 20, false)),
            1
        );
    }
}
