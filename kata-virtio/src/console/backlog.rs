//! Output that the host has not taken yet: the newest [`BACKLOG_BYTES`](super::BACKLOG_BYTES).
//!
//! Owns the bound and the order; knows no descriptor.

use std::collections::VecDeque;

use super::BACKLOG_BYTES;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<u8>);

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds `bytes`; returns how many of the oldest had to go for them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let kept = &bytes[bytes.len().saturating_sub(BACKLOG_BYTES)..];
        let excess = (self.0.len() + kept.len()).saturating_sub(BACKLOG_BYTES);
        self.0.drain(..excess);
        self.0.extend(kept);
        excess + bytes.len() - kept.len()
    }

    /// The oldest bytes, as many as are in one piece.
    pub(super) fn front(&self) -> &[u8] {
        self.0.as_slices().0
    }

    /// The oldest `count` bytes are gone.
    pub(super) fn consume(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Forgets everything; returns how much that was.
    pub(super) fn clear(&mut self) -> usize {
        let count = self.0.len();
        self.0.clear();
        count
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is the tail of everything that was pushed, less what was consumed, and every byte is
        /// accounted for.
        #[test]
        fn the_newest_bytes_stay(pushes in prop::collection::vec((0usize..100_000, 0usize..70_000), 1..8)) {
            let (mut backlog, mut model) = (Backlog::default(), Vec::new());
            let mut next = 0u8;
            for (len, taken) in pushes {
                let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                let dropped = backlog.push(&bytes);
                model.extend_from_slice(&bytes);
                prop_assert_eq!(dropped, model.len().saturating_sub(BACKLOG_BYTES));
                model.drain(..dropped);
                prop_assert_eq!(backlog.to_vec(), &model[..]);
                let front = backlog.front().len();
                prop_assert_eq!(backlog.front(), &model[..front]);
                prop_assert_eq!(front == 0, model.is_empty());
                backlog.consume(taken);
                model.drain(..taken.min(model.len()));
                prop_assert_eq!(backlog.len(), model.len());
            }
            prop_assert_eq!(backlog.clear(), model.len());
            prop_assert!(backlog.is_empty());
        }
    }
}
