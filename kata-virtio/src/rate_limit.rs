//! How much a device may do in a time: token buckets for bytes and operations.
//!
//! Owns the arithmetic and the timer that says when to go on. Knows no device; what an operation is and
//! how many bytes it has, the device says. The buckets are pure: time is an argument.
//!
//! ```text
//!   full ── take ──► some ── take more than is there ──► in debt ── time passes ──► some
//!                                                         └─ nothing is granted
//! ```
//!
//! An operation larger than the burst is granted when its bucket is full, and leaves a debt: it costs
//! the time it should, and no size is refused for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

const NANOSECONDS: u128 = 1_000_000_000;

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<Rate>() == 16 && size_of::<RateLimit>() == 48);

/// An amount per second, and how much of it may be saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes or operations per second; none at all are granted before one second has at least one.
    pub per_second: u64,
    /// What may be used at once after a pause, in bytes or operations.
    pub burst: u64,
}

/// What a device may do. The default is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimit {
    /// Payload bytes.
    pub bytes: Option<Rate>,
    /// Requests or packets.
    pub operations: Option<Rate>,
}

impl RateLimit {
    /// Whether it limits anything.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

/// Tokens that time brings and operations take. Instants are durations since any fixed moment.
#[derive(Debug, Clone)]
struct Bucket {
    rate: Rate,
    /// In billionths of a token, so that no time is lost to rounding; negative in debt.
    level: i128,
    filled: Duration,
}

impl Bucket {
    /// Full at `now`. Rates of nothing are taken for one.
    fn new(rate: Rate, now: Duration) -> Self {
        let rate = Rate {
            per_second: rate.per_second.max(1),
            burst: rate.burst.max(1),
        };
        Self {
            level: Self::scaled(rate.burst),
            rate,
            filled: now,
        }
    }

    fn scaled(tokens: u64) -> i128 {
        i128::from(tokens) * NANOSECONDS.cast_signed()
    }

    fn fill(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.filled) else {
            return;
        };
        // 2^64 seconds of 2^30 nanoseconds at 2^64 tokens would not fit; a century does.
        let passed = passed.as_nanos().min(1 << 62).cast_signed();
        let gained = passed * i128::from(self.rate.per_second);
        self.level = self
            .level
            .saturating_add(gained)
            .min(Self::scaled(self.rate.burst));
        self.filled = now;
    }

    /// How long until `tokens` are granted: nothing when they are now.
    fn wait(&self, tokens: u64) -> Duration {
        let missing = Self::scaled(tokens.min(self.rate.burst)) - self.level;
        let Ok(missing @ 1..) = u128::try_from(missing) else {
            return Duration::ZERO;
        };
        let nanoseconds = missing.div_ceil(u128::from(self.rate.per_second));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(Self::scaled(tokens));
    }
}

/// Both buckets of one device or one direction of it; pure.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    /// Full at `now`, a duration since any fixed moment.
    pub(crate) fn new(limit: RateLimit, now: Duration) -> Self {
        Self {
            bytes: limit.bytes.map(|rate| Bucket::new(rate, now)),
            operations: limit.operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Takes one operation of `bytes`, from both buckets or from none.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub(crate) fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in self.costs(bytes) {
            bucket.fill(now);
            wait = wait.max(bucket.wait(tokens));
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, tokens) in self.costs(bytes) {
            bucket.take(tokens);
        }
        Ok(())
    }

    fn costs(&mut self, bytes: u64) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let bytes = self.bytes.as_mut().map(|bucket| (bucket, bytes));
        let operations = self.operations.as_mut().map(|bucket| (bucket, 1));
        bytes.into_iter().chain(operations)
    }
}

/// Buckets on the host's clock, with a timer that tells when a refused operation can be asked for again.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: Buckets,
    start: Instant,
    timer: OwnedFd,
    waiting: bool,
}

impl Limiter {
    /// # Errors
    /// When the process has no descriptors left.
    pub(crate) fn new(limit: RateLimit) -> io::Result<Self> {
        Ok(Self {
            buckets: Buckets::new(limit, Duration::ZERO),
            start: Instant::now(),
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            waiting: false,
        })
    }

    /// Takes one operation of `bytes`. When it is refused, the timer is set to when it would be granted.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        if self.waiting {
            return false;
        }
        let Err(wait) = self.buckets.take(bytes, self.start.elapsed()) else {
            return true;
        };
        self.waiting = self.set_timer(wait);
        // Without a timer nobody would ever ask again.
        !self.waiting
    }

    /// Readable once a refused operation can be asked for again.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Takes note that the timer is readable, if it is.
    ///
    /// # Errors
    /// When the timer cannot be read.
    pub(crate) fn poll(&mut self) -> io::Result<()> {
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) => self.waiting = false,
            Err(Errno::AGAIN) => {}
            Err(cause) => return Err(cause.into()),
        }
        Ok(())
    }

    /// Whether an operation was refused and its time has not come.
    pub(crate) fn waiting(&self) -> bool {
        self.waiting
    }

    fn set_timer(&self, wait: Duration) -> bool {
        let value = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        });
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => true,
            Err(cause) => {
                log::error!("a rate limit is not kept: {cause}");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bytes(per_second: u64, burst: u64) -> RateLimit {
        RateLimit {
            bytes: Some(Rate { per_second, burst }),
            operations: None,
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_rules() {
        let mut buckets = Buckets::new(bytes(100, 50), Duration::ZERO);
        assert_eq!(buckets.take(50, Duration::ZERO), Ok(()));
        assert_eq!(buckets.take(10, Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take(10, Duration::from_millis(100)), Ok(()));
        // A long pause saves up no more than the burst.
        assert_eq!(buckets.take(50, 60 * SECOND), Ok(()));
        assert!(buckets.take(1, 60 * SECOND).is_err());
    }

    #[test]
    fn more_than_the_burst_goes_from_a_full_bucket_and_costs_its_time() {
        let mut buckets = Buckets::new(bytes(100, 50), Duration::ZERO);
        assert_eq!(buckets.take(1000, Duration::ZERO), Ok(()));
        assert_eq!(
            buckets.take(50, Duration::ZERO),
            Err(Duration::from_secs(10)),
            "950 of debt and 50 wanted"
        );
        assert_eq!(buckets.take(50, 10 * SECOND), Ok(()));
    }

    #[test]
    fn both_buckets_or_none() {
        let limit = RateLimit {
            bytes: Some(Rate {
                per_second: 10,
                burst: 10,
            }),
            operations: Some(Rate {
                per_second: 1,
                burst: 2,
            }),
        };
        let mut buckets = Buckets::new(limit, Duration::ZERO);
        assert_eq!(buckets.take(10, Duration::ZERO), Ok(()));
        assert_eq!(buckets.take(10, Duration::ZERO), Err(SECOND));
        assert_eq!(
            buckets.take(0, Duration::ZERO),
            Ok(()),
            "its operation was not taken"
        );
        assert_eq!(buckets.take(0, Duration::ZERO), Err(SECOND));
    }

    #[test]
    fn the_timer_tells_when_to_go_on() {
        let rate = Rate {
            per_second: 50,
            burst: 1,
        };
        let limit = RateLimit {
            bytes: None,
            operations: Some(rate),
        };
        let mut limiter = Limiter::new(limit).unwrap();
        assert!(limiter.take(0));
        assert!(!limiter.take(0) && limiter.waiting());
        let timer = limiter.timer().try_clone_to_owned().unwrap();
        let mut fds = [rustix::event::PollFd::new(&timer, rustix::event::PollFlags::IN)];
        let deadline = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&deadline)).unwrap(), 1);
        limiter.poll().unwrap();
        assert!(!limiter.waiting() && limiter.take(0));
    }

    proptest! {
        /// Whatever is asked for and whenever: never more than the burst, one operation's debt and the
        /// rate's share of the time; and what is told to wait for is granted after that wait.
        #[test]
        fn never_more_than_the_rate(
            per_second in 1u64..10_000_000,
            burst in 1u64..1_000_000,
            steps in prop::collection::vec((0u64..100_000, 0u64..2_000_000), 1..100),
        ) {
            let mut buckets = Buckets::new(bytes(per_second, burst), Duration::ZERO);
            let (mut now, mut granted, mut largest) = (Duration::ZERO, 0u128, 0u128);
            for (microseconds, size) in steps {
                now += Duration::from_micros(microseconds);
                let answer = buckets.take(size, now);
                if let Err(wait) = answer {
                    let early = now + wait.saturating_sub(Duration::from_nanos(1));
                    prop_assert!(buckets.clone().take(size, early).is_err());
                    now += wait;
                    prop_assert_eq!(buckets.take(size, now), Ok(()));
                }
                granted += u128::from(size);
                largest = largest.max(u128::from(size));
                let share = now.as_nanos() * u128::from(per_second) / NANOSECONDS;
                prop_assert!(granted <= share + u128::from(burst) + largest + 1);
            }
        }

        #[test]
        fn no_numbers_overflow(per_second: u64, burst: u64, size: u64, seconds: u64) {
            let mut buckets = Buckets::new(bytes(per_second, burst), Duration::ZERO);
            buckets.take(size, Duration::ZERO).ok();
            buckets.take(size, Duration::from_secs(seconds)).ok();
        }
    }
}
