//! Whether the worker gives way once before it works on a kick, so that a driver with more to offer goes on.
//!
//! Where guest and worker share a processor, the first kick would wake the worker before the guest has offered
//! the rest, and each request would cost a wake-up and an interrupt. Where they do not, giving way is a system
//! call that returns at once. It is only done while it pays: a driver that offers one request at a time waits
//! for it, and on a busy host giving way can take as long as somebody else's time slice.
//!
//! Pure; knows no queue.

/// Kicks at most without another try.
const REST_MAX: u32 = 63;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Courtesy {
    /// Kicks that are still worked on at once.
    rest: u32,
    /// How many they were, the last time.
    rests: u32,
}

impl Courtesy {
    /// Whether to give way before this kick is worked on.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        due
    }

    /// What came of it: so many chains were there.
    pub(super) fn learn(&mut self, chains: u32) {
        self.rests = match chains {
            0 | 1 => (2 * self.rests + 1).min(REST_MAX),
            _ => 0,
        };
        self.rest = self.rests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_while_it_pays() {
        let mut courtesy = Courtesy::default();
        for _ in 0..100 {
            assert!(courtesy.is_due());
            courtesy.learn(2);
        }
    }

    #[test]
    fn a_driver_that_offers_one_at_a_time_is_rarely_kept_waiting() {
        let mut courtesy = Courtesy::default();
        let mut times = 0;
        for _ in 0..1000 {
            if courtesy.is_due() {
                times += 1;
                courtesy.learn(1);
            }
        }
        assert!((10..=25).contains(&times), "{times}");
        while !courtesy.is_due() {}
        courtesy.learn(9);
        assert!(courtesy.is_due(), "it offers more now");
    }
}
