//! Credit-based flow control of one connection (VIRTIO 1.2 §5.10.6.3).
//!
//! Pure arithmetic modulo 2³²; knows neither packets nor buffers.
//!
//! ```text
//!  guest → host   received ──(buffered here)── forwarded     never more than `allocated` apart
//!  host → guest   sent ─────(buffered there)── peer_forwarded never more than `peer_allocated` apart
//! ```

/// The guest sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{excess} bytes beyond the credit of {allocated}")]
pub(crate) struct Overrun {
    allocated: u32,
    excess: u64,
}

/// Both directions' counters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credit {
    allocated: u32,
    received: u32,
    forwarded: u32,
    announced: u32,
    peer_allocated: u32,
    peer_forwarded: u32,
    sent: u32,
}

impl Credit {
    /// A connection with a buffer of `allocated` bytes here and none known there.
    pub(crate) fn new(allocated: u32) -> Self {
        Self {
            allocated,
            received: 0,
            forwarded: 0,
            announced: 0,
            peer_allocated: 0,
            peer_forwarded: 0,
            sent: 0,
        }
    }

    /// Takes the peer's `buf_alloc` and `fwd_cnt`, which every packet carries.
    pub(crate) fn peer(&mut self, allocated: u32, forwarded: u32) {
        self.peer_allocated = allocated;
        self.peer_forwarded = forwarded;
    }

    /// Bytes that may be sent to the peer now. A peer that takes back an allocation, or claims to have
    /// forwarded what was never sent, gets nothing.
    pub(crate) fn available(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_allocated.saturating_sub(in_flight)
    }

    /// `bytes` went to the peer.
    pub(crate) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `bytes` came from the peer.
    pub(crate) fn received(&mut self, bytes: u32) -> Result<(), Overrun> {
        let buffered = u64::from(self.buffered()) + u64::from(bytes);
        if buffered > u64::from(self.allocated) {
            return Err(Overrun {
                allocated: self.allocated,
                excess: buffered - u64::from(self.allocated),
            });
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// `bytes` of what came have left the buffer.
    pub(crate) fn forwarded(&mut self, bytes: u32) {
        debug_assert!(
            bytes <= self.buffered(),
            "only what was received can be forwarded"
        );
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Whether the peer's idea of the free space is a quarter of the buffer behind.
    pub(crate) fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.announced) >= self.allocated / 4
    }

    /// What the next header says: (`buf_alloc`, `fwd_cnt`).
    pub(crate) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.allocated, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_wrap() {
        let mut credit = Credit {
            received: u32::MAX - 1,
            forwarded: u32::MAX - 1,
            announced: u32::MAX - 1,
            sent: u32::MAX,
            peer_forwarded: u32::MAX - 9,
            peer_allocated: 100,
            ..Credit::new(64)
        };
        assert_eq!(credit.available(), 91);
        credit.sent(91);
        assert_eq!((credit.sent, credit.available()), (90, 0));
        credit.received(64).unwrap();
        assert!(credit.received(1).is_err());
        credit.forwarded(16);
        assert!(credit.update_due());
        assert_eq!(credit.announce(), (64, 14));
        assert!(!credit.update_due());
    }

    #[test]
    fn a_lying_peer_gets_nothing() {
        let mut credit = Credit::new(64);
        credit.peer(1000, 1);
        assert_eq!(
            credit.available(),
            0,
            "claims to have forwarded what was never sent"
        );
        credit.peer(1000, 0);
        credit.sent(800);
        credit.peer(500, 0);
        assert_eq!(credit.available(), 0, "shrank its buffer below what is in flight");
    }

    proptest! {
        /// Two honest sides, from any starting count: neither buffer overflows, and whoever has drained
        /// everything can always be sent to.
        #[test]
        fn honest_sides_never_overrun_and_never_stall(
            start: u32,
            allocated in 4u32..1 << 20,
            steps in prop::collection::vec((1u32..1 << 18, 1u32..1 << 18), 1..60),
        ) {
            let seeded = Credit {
                received: start, forwarded: start, announced: start,
                sent: start, peer_forwarded: start, ..Credit::new(allocated)
            };
            let (mut host, mut guest) = (seeded, seeded);
            guest.peer(allocated, start);
            for (send, drain) in steps {
                let send = send.min(guest.available());
                guest.sent(send);
                prop_assert!(host.received(send).is_ok());
                host.forwarded(drain.min(host.buffered()));
                if host.update_due() {
                    let (buffer, forwarded) = host.announce();
                    guest.peer(buffer, forwarded);
                }
            }
            host.forwarded(host.buffered());
            if host.update_due() {
                let (buffer, forwarded) = host.announce();
                guest.peer(buffer, forwarded);
            }
            prop_assert!(guest.available() > allocated - allocated / 4 - 1);
        }

        #[test]
        fn what_exceeds_the_buffer_is_refused(allocated in 0u32..1 << 20, bytes: u32) {
            prop_assert_eq!(Credit::new(allocated).received(bytes).is_ok(), bytes <= allocated);
        }
    }
}
