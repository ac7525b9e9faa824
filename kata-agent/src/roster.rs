//! The containers of a sandbox by id: those that are there, and the ids of those that come and go.
//!
//! ```text
//!  (free) ──reserve──► coming ──fill──► there ──take──► going ──► (free)
//!                        └──give_up──► (free), or there, if it was made by then
//! ```
//!
//! Owns who has an id. Must not know how a container is made or removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_agent_proto::{Failed, FailureKind};
use tokio::sync::watch;

/// See the module. `T` is a container.
pub(crate) struct Roster<T>(Mutex<HashMap<String, Entry<T>>>);

enum Entry<T> {
    /// It is being made, with what its init will be called.
    Coming(String, Change),
    There(Arc<T>),
    /// It is being removed.
    Going(Change),
}

/// What ends with the entry that it is in; true is that somebody wants no more of the container.
type Change = watch::Sender<bool>;

/// Completes when a change is over.
fn over(change: &Change) -> impl Future<Output = ()> + Send + use<> {
    let mut over = change.subscribe();
    async move { while over.changed().await.is_ok() {} }
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Roster<T> {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry<T>>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container with this id, if it is there.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<T>> {
        match self.entries().get(id) {
            Some(Entry::There(container)) => Some(container.clone()),
            _ => None,
        }
    }

    /// The first that is there of which this holds.
    pub(crate) fn find(&self, holds: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let entries = self.entries();
        let mut there = entries.values().filter_map(|entry| match entry {
            Entry::There(container) => Some(container),
            Entry::Coming(..) | Entry::Going(_) => None,
        });
        there.find(|container| holds(container)).cloned()
    }

    /// Every id that is taken.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }

    /// Takes an id for a container that is being made.
    pub(crate) fn reserve(&self, id: &str, init_id: &str) -> Result<Slot<'_, T>, Failed> {
        let mut entries = self.entries();
        if entries.contains_key(id) {
            return Err(Failed::new(FailureKind::AlreadyExists, id));
        }
        let (change, given_up) = watch::channel(false);
        entries.insert(id.to_owned(), Entry::Coming(init_id.to_owned(), change));
        Ok(Slot {
            roster: self,
            id: id.to_owned(),
            given_up,
        })
    }

    /// Whether this is, or will be, the init of a container that is being made.
    pub(crate) fn is_coming(&self, id: &str, process: &str) -> bool {
        match self.entries().get(id) {
            Some(Entry::Coming(init_id, _)) => process.is_empty() || process == id || process == init_id,
            _ => false,
        }
    }

    /// Asks for the end of a container that is being made, if it is: the answer completes when it is made no more.
    pub(crate) fn give_up(&self, id: &str) -> Option<impl Future<Output = ()> + Send + use<T>> {
        let entries = self.entries();
        let Some(Entry::Coming(_, change)) = entries.get(id) else {
            return None;
        };
        change.send_replace(true);
        Some(over(change))
    }

    /// Completes when a container goes no more that is being removed, if it is: it is gone, or there again.
    pub(crate) fn going(&self, id: &str) -> Option<impl Future<Output = ()> + Send + use<T>> {
        match self.entries().get(id) {
            Some(Entry::Going(change)) => Some(over(change)),
            _ => None,
        }
    }

    /// Takes a container out, to remove it.
    pub(crate) fn take(&self, id: &str) -> Option<Removal<'_, T>> {
        let mut entries = self.entries();
        let container = match entries.get(id)? {
            Entry::There(container) => container.clone(),
            Entry::Coming(..) | Entry::Going(_) => return None,
        };
        entries.insert(id.to_owned(), Entry::Going(watch::channel(false).0));
        Some(Removal {
            roster: self,
            id: id.to_owned(),
            container,
            done: false,
        })
    }
}

/// The id of a container that is being made. Dropping it without [`Slot::fill`] frees the id.
pub(crate) struct Slot<'a, T> {
    roster: &'a Roster<T>,
    id: String,
    given_up: watch::Receiver<bool>,
}

impl<T> Slot<'_, T> {
    /// Completes when somebody wants no more of it.
    pub(crate) fn given_up(&self) -> impl Future<Output = ()> + Send + use<T> {
        let mut given_up = self.given_up.clone();
        async move {
            if given_up.wait_for(|given_up| *given_up).await.is_err() {
                // It is made, or failed by itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The container was made. Returns whether somebody wanted no more of it before that.
    pub(crate) fn fill(self, container: Arc<T>) -> bool {
        let mut entries = self.roster.entries();
        entries.insert(self.id.clone(), Entry::There(container));
        *self.given_up.borrow()
    }
}

impl<T> Drop for Slot<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.roster.entries();
        if matches!(entries.get(&self.id), Some(Entry::Coming(..))) {
            entries.remove(&self.id);
        }
    }
}

/// A container that is being removed. Dropping it without [`Removal::done`] puts it back.
pub(crate) struct Removal<'a, T> {
    roster: &'a Roster<T>,
    id: String,
    container: Arc<T>,
    done: bool,
}

impl<T> Removal<'_, T> {
    pub(crate) fn container(&self) -> &T {
        &self.container
    }

    /// Its id is free.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl<T> Drop for Removal<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.roster.entries();
        if self.done {
            entries.remove(&self.id);
        } else {
            entries.insert(self.id.clone(), Entry::There(self.container.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// Whether a future completes without anybody's doing.
    async fn is_complete(future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = future => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn an_id_is_one_containers_until_it_is_free() {
        let roster = Roster::<u8>::default();
        let slot = roster.reserve("c", "init").expect("free");
        let twice = roster.reserve("c", "init").err().expect("taken");
        assert_eq!(twice.kind, FailureKind::AlreadyExists);
        assert!(roster.get("c").is_none() && roster.take("c").is_none(), "not yet");
        assert_eq!(roster.ids(), ["c"]);
        drop(slot);
        assert!(roster.ids().is_empty());

        let slot = roster.reserve("c", "init").expect("free");
        assert!(!slot.fill(Arc::new(7)), "nobody gave it up");
        assert_eq!(roster.get("c").as_deref(), Some(&7));
        assert!(roster.find(|container| *container == 7).is_some());
        assert!(
            roster.give_up("c").is_none() && roster.going("c").is_none(),
            "it is made"
        );
    }

    #[tokio::test]
    async fn who_makes_it_hears_that_it_is_given_up_and_who_gives_it_up_that_it_is_over() {
        let roster = Roster::<u8>::default();
        assert!(roster.give_up("c").is_none(), "nothing to give up");
        let slot = roster.reserve("c", "init").expect("free");
        for (process, is_coming) in [("", true), ("c", true), ("init", true), ("other", false)] {
            assert_eq!(roster.is_coming("c", process), is_coming, "{process:?}");
        }
        let mut heard = pin!(slot.given_up());
        assert!(!is_complete(&mut heard).await, "nobody said so");
        let [first, second] =
            [roster.give_up("c"), roster.give_up("c")].map(|over| over.expect("being made"));
        heard.await;
        slot.given_up().await;
        let (first, mut second) = (pin!(first), pin!(second));
        assert!(!is_complete(&mut second).await, "it is still being made");
        drop(slot);
        first.await;
        second.await;
    }

    #[tokio::test]
    async fn what_is_made_before_it_hears_that_it_is_given_up_is_there_and_says_so() {
        let roster = Roster::<u8>::default();
        let slot = roster.reserve("c", "init").expect("free");
        let over = roster.give_up("c").expect("being made");
        assert!(slot.fill(Arc::new(7)));
        over.await;
        assert!(roster.take("c").is_some());
    }

    #[tokio::test]
    async fn one_removes_it_and_others_hear_when_it_is_gone_or_there_again() {
        let roster = Roster::<u8>::default();
        let slot = roster.reserve("c", "init").expect("free");
        slot.fill(Arc::new(7));
        let removal = roster.take("c").expect("there");
        assert_eq!(*removal.container(), 7);
        assert!(roster.take("c").is_none() && roster.get("c").is_none());
        assert_eq!(roster.ids(), ["c"], "its id is taken");
        let mut over = pin!(roster.going("c").expect("being removed"));
        assert!(!is_complete(&mut over).await);
        drop(removal);
        over.await;
        assert_eq!(roster.get("c").as_deref(), Some(&7), "it is back");

        let removal = roster.take("c").expect("there");
        let over = roster.going("c").expect("being removed");
        removal.done();
        over.await;
        assert!(roster.ids().is_empty());
    }
}
