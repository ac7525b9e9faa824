//! Processes that the kernel killed for want of memory, as events.
//!
//! ```text
//!  memory.events: oom_kill ──Kills (one a container)──► Events (one a sandbox) ──next──► a request
//! ```
//!
//! Owns the counting: each kill is one event, and events wait until somebody takes them. Memory is bounded
//! by the number of containers, not of events. Must not know requests.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::watched::{Watched, number_of};

/// Events of all containers that nobody has taken. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Container and number of its events, in the order of the first.
    kills: VecDeque<(String, u64)>,
    closed: bool,
}

impl Events {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, container: &str, count: u64) {
        if count == 0 {
            return;
        }
        let mut waiting = self.waiting();
        let known = waiting.kills.iter_mut().find(|(id, _)| id == container);
        match known {
            Some((_, kills)) => *kills += count,
            None => waiting.kills.push_back((container.to_owned(), count)),
        }
        drop(waiting);
        self.0.arrived.notify_waiters();
    }

    /// No more events come: whoever waits is told.
    pub(crate) fn close(&self) {
        self.waiting().closed = true;
        self.0.arrived.notify_waiters();
    }

    /// Takes the next event: the container's id. None at the end, after the last event.
    pub(crate) async fn next(&self) -> Option<String> {
        loop {
            let arrived = self.0.arrived.notified();
            tokio::pin!(arrived);
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            if let Some(taken) = self.take() {
                return taken;
            }
            arrived.await;
        }
    }

    /// An event, the end, or nothing so far.
    fn take(&self) -> Option<Option<String>> {
        let mut waiting = self.waiting();
        let Some((id, count)) = waiting.kills.front_mut() else {
            return waiting.closed.then_some(None);
        };
        let id = id.clone();
        *count -= 1;
        if *count == 0 {
            waiting.kills.pop_front();
        }
        Some(Some(id))
    }
}

/// The kills of one container, told as long as this lives.
pub(crate) struct Kills {
    counter: Arc<Counter>,
    telling: AbortHandle,
}

struct Counter {
    id: String,
    file: Watched,
    told: AtomicU64,
    events: Events,
}

impl Kills {
    /// Begins to watch a new container's cgroup; none when the kernel does not count memory there.
    pub(crate) fn watch(id: &str, cgroup: &Path, events: &Events) -> io::Result<Option<Self>> {
        let file = match Watched::open(&cgroup.join("memory.events")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let counter = Arc::new(Counter {
            id: id.to_owned(),
            file,
            told: AtomicU64::new(0),
            events: events.clone(),
        });
        let telling = tokio::spawn(tell_all(counter.clone())).abort_handle();
        Ok(Some(Kills { counter, telling }))
    }

    /// Makes events of what the kernel has counted so far. After the last process nothing more comes.
    pub(crate) fn tell(&self) -> io::Result<()> {
        self.counter.tell()
    }
}

impl Drop for Kills {
    fn drop(&mut self) {
        self.telling.abort();
    }
}

async fn tell_all(counter: Arc<Counter>) {
    // A failure means that the cgroup is gone, and with it its processes.
    while counter.tell().is_ok() && counter.file.changed().await.is_ok() {}
}

impl Counter {
    fn tell(&self) -> io::Result<()> {
        self.events.add(&self.id, newly(&self.told, &self.file.text()?));
        Ok(())
    }
}

/// How many kills a text counts that were not told before.
fn newly(told: &AtomicU64, text: &str) -> u64 {
    let counted = number_of(text, "oom_kill").unwrap_or(0);
    counted.saturating_sub(told.fetch_max(counted, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn next(events: &Events) -> Option<String> {
        let next = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        next.expect("an answer in time")
    }

    #[test]
    fn each_kill_is_one_event_however_many_are_counted_at_once() {
        let events = Events::default();
        let told = AtomicU64::new(0);
        let texts = [
            "oom 1\noom_kill 0\n",
            "oom_kill 1\noom_group_kill 7\n",
            "oom_kill 1\n",
            "oom_kill 4\n",
        ];
        for text in texts {
            events.add("c1", newly(&told, text));
        }
        let taken = std::iter::from_fn(|| events.take().flatten()).collect::<Vec<_>>();
        assert_eq!(taken, ["c1"; 4]);
    }

    #[tokio::test]
    async fn events_wait_for_requests_and_requests_for_events() {
        let events = Events::default();
        events.add("c1", 2);
        events.add("c2", 1);
        assert_eq!(next(&events).await.as_deref(), Some("c1"));
        // Between two requests another comes.
        events.add("c1", 1);
        for id in ["c1", "c1", "c2"] {
            assert_eq!(next(&events).await.as_deref(), Some(id));
        }
        let (one, other, ()) = tokio::join!(next(&events), next(&events), async {
            events.add("c3", 1);
            tokio::task::yield_now().await;
            events.add("c4", 1);
        });
        let mut both = [one, other].map(Option::unwrap_or_default);
        both.sort();
        assert_eq!(both, ["c3", "c4"]);
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_event_and_stays() {
        let events = Events::default();
        events.add("c1", 1);
        events.close();
        assert_eq!(next(&events).await.as_deref(), Some("c1"));
        assert_eq!((next(&events).await, next(&events).await), (None, None));
        let events = Events::default();
        let (waited, ()) = tokio::join!(next(&events), async { events.close() });
        assert_eq!(waited, None);
    }
}
