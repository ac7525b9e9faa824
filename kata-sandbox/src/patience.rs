//! How long a boot may take: one deadline for all of it where the caller set one.
//!
//! It owns the time, and what a stage says that ran out of it. It must not know what the stages do: whatever is waited
//! for is dropped, and its drop ends it.

use std::time::{Duration, Instant};

use crate::container::Container;
use crate::ending::Limit;
use crate::error::{Error, ErrorKind};
use crate::report::Stage;
use crate::supervise::Deadline;

/// What a machine is given where nobody said anything.
const MACHINE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    begin: Instant,
    limit: Option<Duration>,
}

impl Patience {
    /// From now.
    pub(crate) fn of(container: &Container) -> Self {
        Self {
            begin: Instant::now(),
            limit: container.boot_timeout,
        }
    }

    /// None for a time that no clock will show.
    fn end(&self) -> Option<Instant> {
        self.begin.checked_add(self.limit?)
    }

    /// Does the work of a stage within what is left.
    pub(crate) async fn bound<T>(
        &self,
        stage: Stage,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(end) = self.end() else {
            return work.await;
        };
        match tokio::time::timeout_at(end.into(), work).await {
            Ok(done) => done,
            Err(_) => {
                let limit = self.limit.unwrap_or_default();
                let message = format!("the sandbox was not ready within {limit:?}; it is given up");
                Err(Error::new(ErrorKind::BootTimedOut, stage, message).sandbox_lost())
            }
        }
    }

    /// When the machine, which is started now, is to be ready.
    pub(crate) fn of_machine(&self) -> Option<Deadline> {
        match self.limit {
            None => Deadline::after(MACHINE, Limit::Boot),
            Some(_) => self.end().map(|end| Deadline::at(end, Limit::Boot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_caller_set_bounds_each_stage_and_names_it() {
        let limit = Duration::from_secs(5);
        let patience = Patience::of(&Container::new("i").boot_timeout(limit));
        assert_eq!(patience.bound(Stage::Image, async { Ok(7) }).await.unwrap(), 7);
        let never = std::future::pending::<Result<(), Error>>();
        let error = patience.bound(Stage::Image, never).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BootTimedOut);
        assert_eq!(
            error.to_string(),
            "image: the sandbox was not ready within 5s; it is given up"
        );
        let end = patience.begin + limit;
        assert_eq!(patience.of_machine(), Some(Deadline::at(end, Limit::Boot)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_it_only_the_machine_has_a_deadline() {
        let patience = Patience::of(&Container::new("i"));
        assert!(patience.of_machine().is_some());
        let late = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(7)
        };
        assert_eq!(patience.bound(Stage::Image, late).await.unwrap(), 7);
        let endless = Patience::of(&Container::new("i").boot_timeout(Duration::MAX));
        assert_eq!(endless.of_machine(), None);
        assert_eq!(endless.bound(Stage::Image, async { Ok(7) }).await.unwrap(), 7);
    }
}
