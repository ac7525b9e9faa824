//! Log lines about the guest's behaviour, at a rate that the guest cannot drive.
//!
//! Owns the rate; knows no device.

use std::fmt::Display;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);
const LINES_PER_PERIOD: u32 = 5;

/// Counts the lines of a period and swallows what is too much.
#[derive(Debug)]
pub(crate) struct Complaints {
    device: &'static str,
    since: Option<Instant>,
    lines: u32,
    swallowed: u64,
}

impl Complaints {
    /// Every line begins with the device's name.
    pub(crate) fn new(device: &'static str) -> Self {
        Self {
            device,
            since: None,
            lines: 0,
            swallowed: 0,
        }
    }

    /// Logs a warning, unless enough were logged lately.
    pub(crate) fn warn(&mut self, about: &dyn Display) {
        if self.permit(Instant::now()) {
            log::warn!("{}: {about}", self.device);
        }
    }

    fn permit(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            if self.swallowed > 0 {
                log::warn!(
                    "{}: {} more complaints were not logged",
                    self.device,
                    self.swallowed
                );
            }
            *self = Self {
                since: Some(now),
                ..Self::new(self.device)
            };
        }
        if self.lines < LINES_PER_PERIOD {
            self.lines += 1;
            return true;
        }
        self.swallowed += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_five_lines_a_period() {
        let mut complaints = Complaints::new("test");
        let start = Instant::now();
        let logged = (0..1000).filter(|_| complaints.permit(start)).count();
        assert_eq!((logged, complaints.swallowed), (5, 995));
        assert!(complaints.permit(start + PERIOD));
    }
}
