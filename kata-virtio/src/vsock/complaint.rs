//! Log lines about the guest's behaviour, at a rate that the guest cannot drive.

use std::fmt::Display;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);
const LINES_PER_PERIOD: u32 = 5;

/// Counts the lines of a period and swallows what is too much.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    since: Option<Instant>,
    lines: u32,
    swallowed: u64,
}

impl Complaints {
    /// Logs a warning, unless enough were logged lately.
    pub(crate) fn warn(&mut self, about: &dyn Display) {
        if self.permit(Instant::now()) {
            log::warn!("vsock: {about}");
        }
    }

    fn permit(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            if self.swallowed > 0 {
                log::warn!("vsock: {} more complaints were not logged", self.swallowed);
            }
            *self = Self {
                since: Some(now),
                ..Self::default()
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
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let logged = (0..1000).filter(|_| complaints.permit(start)).count();
        assert_eq!((logged, complaints.swallowed), (5, 995));
        assert!(complaints.permit(start + PERIOD));
    }
}
