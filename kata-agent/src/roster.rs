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

use crate::container::Container;

/// See the module.
#[derive(Default)]
pub(crate) struct Roster(Mutex<HashMap<String, Entry>>);

enum Entry {
    /// It is being made, with what its init will be called, and whether somebody wants no more of it.
    Coming(String, watch::Sender<bool>),
    There(Arc<Container>),
    /// It is being removed.
    Going,
}

impl Roster {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container with this id, if it is there.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Container>> {
        match self.entries().get(id) {
            Some(Entry::There(container)) => Some(container.clone()),
            _ => None,
        }
    }

    /// The first that is there of which this holds.
    pub(crate) fn find(&self, holds: impl Fn(&Container) -> bool) -> Option<Arc<Container>> {
        let entries = self.entries();
        let mut there = entries.values().filter_map(|entry| match entry {
            Entry::There(container) => Some(container),
            Entry::Coming(..) | Entry::Going => None,
        });
        there.find(|container| holds(container)).cloned()
    }

    /// Every id that is taken.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }

    /// Takes an id for a container that is being made.
    pub(crate) fn reserve(&self, id: &str, init_id: &str) -> Result<Slot<'_>, Failed> {
        let mut entries = self.entries();
        if entries.contains_key(id) {
            return Err(Failed::new(FailureKind::AlreadyExists, id));
        }
        let (tell, given_up) = watch::channel(false);
        entries.insert(id.to_owned(), Entry::Coming(init_id.to_owned(), tell));
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
    pub(crate) fn give_up(&self, id: &str) -> Option<impl Future<Output = ()> + Send + use<>> {
        let entries = self.entries();
        let Some(Entry::Coming(_, tell)) = entries.get(id) else {
            return None;
        };
        tell.send_replace(true);
        let mut over = tell.subscribe();
        // The sender goes with the entry.
        Some(async move { while over.changed().await.is_ok() {} })
    }

    /// Takes a container out, to remove it.
    pub(crate) fn take(&self, id: &str) -> Option<Removal<'_>> {
        let mut entries = self.entries();
        let container = match entries.get(id)? {
            Entry::There(container) => container.clone(),
            Entry::Coming(..) | Entry::Going => return None,
        };
        entries.insert(id.to_owned(), Entry::Going);
        Some(Removal {
            roster: self,
            id: id.to_owned(),
            container,
            done: false,
        })
    }
}

/// The id of a container that is being made. Dropping it without [`Slot::fill`] frees the id.
pub(crate) struct Slot<'a> {
    roster: &'a Roster,
    id: String,
    given_up: watch::Receiver<bool>,
}

impl Slot<'_> {
    /// Completes when somebody wants no more of it.
    pub(crate) fn given_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut given_up = self.given_up.clone();
        async move {
            if given_up.wait_for(|given_up| *given_up).await.is_err() {
                // It is made, or failed by itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The container was made. Returns whether somebody wanted no more of it before that.
    pub(crate) fn fill(self, container: Arc<Container>) -> bool {
        let mut entries = self.roster.entries();
        entries.insert(self.id.clone(), Entry::There(container));
        *self.given_up.borrow()
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut entries = self.roster.entries();
        if matches!(entries.get(&self.id), Some(Entry::Coming(..))) {
            entries.remove(&self.id);
        }
    }
}

/// A container that is being removed. Dropping it without [`Removal::done`] puts it back.
pub(crate) struct Removal<'a> {
    roster: &'a Roster,
    id: String,
    container: Arc<Container>,
    done: bool,
}

impl Removal<'_> {
    pub(crate) fn container(&self) -> &Container {
        &self.container
    }

    /// Its id is free.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Removal<'_> {
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

    #[tokio::test]
    async fn an_id_is_one_containers_until_it_is_free() {
        let roster = Roster::default();
        let slot = roster.reserve("c", "init").expect("free");
        let twice = roster.reserve("c", "init").err().expect("taken");
        assert_eq!(twice.kind, FailureKind::AlreadyExists);
        assert!(roster.get("c").is_none() && roster.take("c").is_none(), "not yet");
        assert_eq!(roster.ids(), ["c"]);
        drop(slot);
        assert!(roster.ids().is_empty());
    }

    #[tokio::test]
    async fn who_makes_it_hears_that_it_is_given_up_and_who_gives_it_up_that_it_is_over() {
        let roster = Roster::default();
        assert!(roster.give_up("c").is_none(), "nothing to give up");
        let slot = roster.reserve("c", "init").expect("free");
        for (process, is_coming) in [("", true), ("c", true), ("init", true), ("other", false)] {
            assert_eq!(roster.is_coming("c", process), is_coming, "{process:?}");
        }
        let mut heard = pin!(slot.given_up());
        tokio::select! {
            biased;
            () = &mut heard => panic!("nobody said so"),
            () = std::future::ready(()) => {}
        }
        let over = [roster.give_up("c"), roster.give_up("c")].map(|over| over.expect("being made"));
        heard.await;
        slot.given_up().await;
        let [first, mut second] = over.map(Box::pin);
        tokio::select! {
            biased;
            () = &mut second => panic!("it is still being made"),
            () = std::future::ready(()) => {}
        }
        drop(slot);
        first.await;
        second.await;
    }
}
