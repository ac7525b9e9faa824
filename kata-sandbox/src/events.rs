//! What happens in a sandbox, for any number of listeners.
//!
//! ```text
//!  GetOOMEvent ─┐
//!  WaitProcess ─┼─► Hub ──► a Queue for each listener ──► report::Events
//!  the end     ─┘
//! ```
//!
//! Before somebody listens, nothing is asked of the agent but the ends of processes for which nobody waits, once they
//! are many. Owns who hears what; what a listener has not taken is kept for it, kills for want of memory as a number a
//! container, so that no guest makes it grow. Must not know how a container is made.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use kata_agent_proto::CallError;
use kata_agent_proto::agent::GetOOMEventRequest;

use crate::link::{Link, ended};
use crate::members::wait_request;
use crate::output::ExitStatus;
use crate::report::{Event, Stage};

/// So many processes are only noted. The agent is asked for the ends of more of them, so that what has ended is
/// forgotten also where nobody waits for anything.
const UNWATCHED_MAX: usize = 64;

/// So many containers are known after their removal, for what the agent still has to tell of them.
const REMOVED_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    runtime: tokio::runtime::Handle,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    listeners: Vec<Weak<Queue>>,
    /// The containers that there are: an agent may only speak of these,
    containers: BTreeSet<String>,
    /// and of the last that were removed, whose kills may be told later than their removal.
    removed: VecDeque<String>,
    /// Processes whose end is neither known nor asked for so far: container and name.
    unwatched: BTreeSet<(String, String)>,
    is_watching: bool,
    /// How it ended.
    end: Option<Event>,
}

impl State {
    /// Whether there is such a container, or was a short time ago.
    fn knows(&self, container: &str) -> bool {
        self.containers.contains(container) || self.removed.iter().any(|removed| removed == container)
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while holding it.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Must be called within the runtime that is to listen.
    pub(crate) fn new() -> Self {
        Self {
            runtime: tokio::runtime::Handle::current(),
            state: Arc::default(),
        }
    }

    /// What listens, and what else is done in the background.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Notes a container.
    pub(crate) fn created(&self, container: &str) {
        locked(&self.state).containers.insert(container.to_owned());
    }

    /// Forgets a container and its processes.
    pub(crate) fn removed(&self, container: &str) {
        let mut state = locked(&self.state);
        state.containers.remove(container);
        state.unwatched.retain(|(of, _)| of != container);
        state.removed.retain(|removed| removed != container);
        state.removed.push_back(container.to_owned());
        if state.removed.len() > REMOVED_MAX {
            state.removed.pop_front();
        }
    }

    /// Notes a process.
    pub(crate) fn started(&self, link: &Arc<Link>, container: &str, process: &str) {
        let name = (container.to_owned(), process.to_owned());
        let mut state = locked(&self.state);
        if state.is_watching || state.unwatched.len() >= UNWATCHED_MAX {
            drop(state);
            self.watch_process(link, name);
        } else {
            state.unwatched.insert(name);
        }
    }

    /// Forgets a process whose end somebody has learned of.
    pub(crate) fn ended(&self, container: &str, process: &str) {
        let name = (container.to_owned(), process.to_owned());
        locked(&self.state).unwatched.remove(&name);
    }

    /// A new listener, which hears of all whose end nobody has learned of so far.
    pub(crate) fn listen(&self, link: &Arc<Link>) -> Arc<Queue> {
        let queue = Arc::new(Queue::default());
        let mut state = locked(&self.state);
        if let Some(end) = &state.end {
            queue.push(end.clone());
            return queue;
        }
        state.listeners.retain(|listener| listener.strong_count() > 0);
        state.listeners.push(Arc::downgrade(&queue));
        let unwatched = std::mem::take(&mut state.unwatched);
        let is_first = !std::mem::replace(&mut state.is_watching, true);
        drop(state);
        if is_first {
            let (state, watched) = (Arc::clone(&self.state), Arc::clone(link));
            self.runtime
                .spawn(async move { tell_kills(&state, &watched).await });
            let (state, watched) = (Arc::clone(&self.state), Arc::clone(link));
            self.runtime
                .spawn(async move { tell_end(&state, &watched).await });
        }
        for process in unwatched {
            self.watch_process(link, process);
        }
        queue
    }

    fn watch_process(&self, link: &Arc<Link>, name: (String, String)) {
        let (state, link) = (Arc::clone(&self.state), Arc::clone(link));
        self.runtime.spawn(async move {
            let (container, process) = name;
            let call = link.client.wait_process(wait_request(&container, &process));
            // One whose container is removed, or whose machine ends, has no status.
            let Ok(answer) = link.call(Stage::Exit, "wait for the process", call).await else {
                return;
            };
            let status = ExitStatus(answer.status);
            let event = match container == process {
                true => Event::ContainerExited { container, status },
                false => Event::ProcessExited {
                    container,
                    process,
                    status,
                },
            };
            publish(&locked(&state), &event);
        });
    }
}

fn publish(state: &State, event: &Event) {
    for listener in state.listeners.iter().filter_map(Weak::upgrade) {
        listener.push(event.clone());
    }
}

/// Asks for the next kill as long as there is an agent.
async fn tell_kills(state: &Mutex<State>, link: &Link) {
    // Once: who lies can do it as often as it is asked.
    let mut has_warned = false;
    loop {
        let asked = link.client.get_oom_event(GetOOMEventRequest::default());
        let container = tokio::select! {
            biased;
            () = link.ended() => return,
            answer = asked => match answer {
                Ok(event) => event.container_id,
                Err(error) => {
                    if !matches!(error, CallError::Closed | CallError::Cut) {
                        tracing::warn!(%error, "the agent tells of no kills for want of memory");
                    }
                    return;
                }
            },
        };
        let state = locked(state);
        if state.knows(&container) {
            publish(&state, &Event::OutOfMemory { container });
        } else if !std::mem::replace(&mut has_warned, true) {
            tracing::warn!("the agent tells of a kill in a container that nobody knows");
        }
    }
}

async fn tell_end(state: &Mutex<State>, link: &Link) {
    let error = ended(link.state()).await.error(Stage::Exit);
    let event = Event::SandboxEnded {
        kind: error.kind(),
        message: error.to_string(),
    };
    let mut state = locked(state);
    publish(&state, &event);
    state.end = Some(event);
}

/// What one listener has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// An event, and how often it happened.
    events: VecDeque<(Event, u64)>,
    has_ended: bool,
    waker: Option<Waker>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut waiting = self.waiting();
        let known = match event {
            Event::OutOfMemory { .. } => waiting.events.iter_mut().find(|(known, _)| *known == event),
            _ => None,
        };
        match known {
            Some((_, count)) => *count = count.saturating_add(1),
            None => waiting.events.push_back((event, 1)),
        }
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }

    /// The next event; none after the sandbox's end.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Event>> {
        let mut waiting = self.waiting();
        if waiting.has_ended {
            return Poll::Ready(None);
        }
        let Some((event, count)) = waiting.events.front_mut() else {
            waiting.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let event = event.clone();
        *count -= 1;
        if *count == 0 {
            waiting.events.pop_front();
        }
        waiting.has_ended = matches!(event, Event::SandboxEnded { .. });
        Poll::Ready(Some(event))
    }
}

/// What happens in a sandbox: a stream of [`Event`]s, which ends after the sandbox's end.
///
/// Several may listen to one sandbox, and each hears of everything. What was not taken yet is kept; dropping it ends
/// the listening.
///
/// ```no_run
/// use kata_sandbox::report::Event;
///
/// # async fn example(sandbox: &kata_sandbox::Sandbox) {
/// let mut events = sandbox.events();
/// while let Some(event) = events.next().await {
///     if let Event::OutOfMemory { container } = event {
///         eprintln!("{container} wants more memory than it may have");
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events(pub(crate) Arc<Queue>);

impl Events {
    /// The next event; none after the last, which is the sandbox's end. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.0.poll_next(cx)).await
    }
}

impl futures_core::Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn oom(container: &str) -> Event {
        Event::OutOfMemory {
            container: container.to_owned(),
        }
    }

    #[tokio::test]
    async fn kills_are_counted_and_told_one_by_one_and_the_end_is_last() {
        let queue = Arc::new(Queue::default());
        let mut events = Events(Arc::clone(&queue));
        for _ in 0..1000 {
            queue.push(oom("a"));
            queue.push(oom("b"));
        }
        assert_eq!(queue.waiting().events.len(), 2, "no guest makes it grow");
        let exit = Event::ContainerExited {
            container: "a".into(),
            status: ExitStatus(137),
        };
        let end = Event::SandboxEnded {
            kind: ErrorKind::Stopped,
            message: String::new(),
        };
        queue.push(exit.clone());
        queue.push(end.clone());
        for expected in [oom("a"), oom("b")] {
            for _ in 0..1000 {
                assert_eq!(events.next().await, Some(expected.clone()));
            }
        }
        assert_eq!(events.next().await, Some(exit));
        assert_eq!(events.next().await, Some(end));
        assert_eq!((events.next().await, events.next().await), (None, None));
    }

    #[tokio::test]
    async fn what_is_over_is_forgotten() {
        let hub = Hub::new();
        for number in 0..2 * REMOVED_MAX {
            let name = format!("c{number}");
            hub.created(&name);
            let process = (name.clone(), name.clone());
            locked(&hub.state).unwatched.insert(process);
            let process = (name.clone(), "exec1".to_owned());
            locked(&hub.state).unwatched.insert(process);
            hub.ended(&name, "exec1");
            assert_eq!(locked(&hub.state).unwatched.len(), 1);
            hub.removed(&name);
            // The kill that ended it may be told after that.
            assert!(locked(&hub.state).knows(&name));
        }
        // A name that is used again and again is one.
        for _ in 0..2 * REMOVED_MAX {
            hub.created("again");
            hub.removed("again");
        }
        hub.created("here");
        let state = locked(&hub.state);
        assert_eq!((state.containers.len(), state.unwatched.len()), (1, 0));
        assert_eq!(state.removed.len(), REMOVED_MAX);
        let last = format!("c{}", 2 * REMOVED_MAX - 1);
        assert!(["here", "again", &last].iter().all(|name| state.knows(name)));
        assert!(!state.knows("c0") && !state.knows("never"));
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let queue = Arc::new(Queue::default());
        let mut events = Events(Arc::clone(&queue));
        let (event, ()) = tokio::join!(events.next(), async {
            tokio::task::yield_now().await;
            queue.push(oom("a"));
        });
        assert_eq!(event, Some(oom("a")));
    }
}
