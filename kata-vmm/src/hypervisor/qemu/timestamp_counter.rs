//! How fast the host's timestamp counter runs.
//!
//! QEMU in software shows its guest the host's counter, and a microvm has no timer that a guest kernel
//! could measure it against: the kernel hangs or misjudges time unless it is told.
//! Owns the measurement. It must not know who is told.

#![expect(
    unsafe_code,
    reason = "the counter is read by an instruction that has no safe form"
)]

use std::time::{Duration, Instant};

/// The interval that is measured at least: with samples good to about 30 ns, 15 parts per million.
const INTERVAL: Duration = Duration::from_millis(2);

/// How many samples are taken for a good one.
const SAMPLES: usize = 8;

/// A running measurement.
#[derive(Debug)]
pub(super) struct Measurement(Sample);

#[derive(Debug, Clone, Copy)]
struct Sample {
    instant: Instant,
    ticks: u64,
}

impl Measurement {
    /// Starts measuring.
    pub(super) fn start() -> Self {
        Self(sample())
    }

    /// The frequency in kHz. Waits until two milliseconds have passed since the start.
    pub(super) fn khz(&self) -> u64 {
        if let Some(rest) = INTERVAL.checked_sub(self.0.instant.elapsed()) {
            std::thread::sleep(rest);
        }
        let end = sample();
        let ticks = u128::from(end.ticks.wrapping_sub(self.0.ticks));
        let nanoseconds = end.instant.duration_since(self.0.instant).as_nanos().max(1);
        u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
    }
}

/// The sample whose two clocks were read closest together.
fn sample() -> Sample {
    let one = |_| {
        let before = read();
        let instant = Instant::now();
        let width = read().wrapping_sub(before);
        let ticks = before.wrapping_add(width / 2);
        (width, Sample { instant, ticks })
    };
    let first = one(0);
    (1..SAMPLES)
        .map(one)
        .fold(first, |best, next| if next.0 < best.0 { next } else { best })
        .1
}

fn read() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space execute it unless a
    // process asked otherwise for itself (prctl(2), `PR_SET_TSC`), which the monitor does not.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        // On a loaded machine a sample can be torn apart by the scheduler, so the closest of many pairs counts.
        let apart = (0..20)
            .map(|_| {
                let (a, b) = (Measurement::start().khz(), Measurement::start().khz());
                assert!((500_000..10_000_000).contains(&a), "{a} kHz");
                a.abs_diff(b) * 1_000_000 / a
            })
            .min();
        assert!(apart < Some(200), "{apart:?} parts per million apart");
    }
}
