//! How often and how long to wait for a place that fails for now.

use std::time::Duration;

use super::TransferError;

/// Attempts that are left, and the pause before the next.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    attempts: u32,
    attempts_left: u32,
    first_pause: Duration,
    pause: Duration,
}

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Patience {
    /// Files do not become readable by waiting.
    pub(crate) const NONE: Self = Self {
        attempts: 0,
        attempts_left: 0,
        first_pause: Duration::ZERO,
        pause: Duration::ZERO,
    };

    /// So many attempts after the first, the pause doubling from one to the next.
    pub(crate) fn new(attempts: u32, first_pause: Duration) -> Self {
        Self {
            attempts,
            attempts_left: attempts,
            first_pause,
            pause: first_pause,
        }
    }

    /// How long to wait before the next attempt; `None` when there is none left. `asked` is how long the other side
    /// wishes to be left alone.
    pub(crate) fn next_pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.attempts_left = self.attempts_left.checked_sub(1)?;
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Some(asked.map_or(pause, |asked| asked.max(pause)))
    }

    /// Things go on: what was used up is given back.
    pub(crate) fn restore(&mut self) {
        self.attempts_left = self.attempts;
        self.pause = self.first_pause;
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new(4, Duration::from_millis(250))
    }
}

/// Does something again as long as it fails for now and patience lasts.
///
/// # Errors
/// The last attempt's.
pub(crate) fn patiently<T>(
    mut patience: Patience,
    mut attempt: impl FnMut() -> Result<T, TransferError>,
) -> Result<T, TransferError> {
    loop {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let pause = patience
            .next_pause(error.retry_after())
            .filter(|_| error.is_temporary());
        let Some(pause) = pause else {
            return Err(error);
        };
        log::debug!("{error}; asking again in {pause:?}");
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let mut patience = Patience::new(3, Duration::from_secs(4));
        let pauses: Vec<_> = std::iter::from_fn(|| patience.next_pause(None)).collect();
        assert_eq!(pauses, [4, 8, 10].map(Duration::from_secs));
        patience.restore();
        assert_eq!(
            patience.next_pause(Some(Duration::from_secs(30))),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            patience.next_pause(Some(Duration::from_secs(1))),
            Some(Duration::from_secs(8))
        );
    }
}
