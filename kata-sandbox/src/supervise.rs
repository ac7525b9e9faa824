//! The one task that owns a sandbox's state, from the start of its monitor to its end.
//!
//! ```text
//!            Dialed                 Stop, TimeUp, Exited, MonitorGone, AgentLost
//!  Booting ─────────► (Booting) ──┬──────────────────────────────────────────► Ended(cause)
//!     │  WatchAgent               │
//!     └──────────► Running ───────┘
//! ```
//!
//! Every event comes through [`Event`]; nobody else writes the state. `Ended` is final and is
//! published only after the monitor is reaped: who sees it knows that nothing is left.

use std::future::pending;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_agent_proto::{HelloError, read_end};
use kata_vmm::control::{self, Request};
use kata_vmm::machine::Running;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ending::{Cause, Ended, Limit, Loss, Reached, Step};
use crate::launch::{Control, Monitor};
use crate::questions::{Question, Questions};

/// How long the monitor may take to end once its control socket is closed.
const MONITOR_PATIENCE: Duration = Duration::from_secs(5);
/// How long a machine whose agent is gone may take to say why (a panic resets it at once).
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a sandbox's holders can see of it.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Booting,
    Running,
    Ended(Arc<Ended>),
}

/// When a sandbox is to be killed, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Limit,
}

impl Deadline {
    /// At a moment.
    pub(crate) const fn at(at: Instant, limit: Limit) -> Self {
        Self { at, limit }
    }

    /// From now; none for a time that no clock will show.
    pub(crate) fn after(time: Duration, limit: Limit) -> Option<Self> {
        Instant::now().checked_add(time).map(|at| Self { at, limit })
    }
}

/// What the supervisor is told to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// The agent said hello; this stream ends when the agent does, and has nothing more to say.
    WatchAgent(UnixStream),
    /// End the sandbox at this time; `None` takes the deadline away.
    Deadline(Option<Deadline>),
    /// Ask the machine.
    Ask(Question),
    /// End the sandbox.
    Stop,
    /// End the sandbox: its agent takes no calls any more, or cannot be trusted with them.
    GiveUp(Loss),
}

/// What booting waits for.
#[derive(Debug)]
pub(crate) struct Milestones {
    /// The hypervisor runs the machine.
    pub(crate) launched: oneshot::Receiver<(Running, Instant)>,
    /// The agent dialed.
    pub(crate) dialed: oneshot::Receiver<(UnixStream, Instant)>,
}

/// A sandbox's supervisor, seen from outside. When the last sender of orders is dropped, the sandbox ends.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) control: Arc<Control>,
    pub(crate) monitor_pid: u32,
}

/// Starts the supervisor of a monitor that was just launched.
pub(crate) fn supervise(
    monitor: Monitor,
    control: Control,
    hello_port: u32,
    boot_deadline: Option<Deadline>,
) -> (Supervision, Milestones) {
    let control = Arc::new(control);
    let (orders, orders_rx) = mpsc::unbounded_channel();
    let (state_tx, state) = watch::channel(State::Booting);
    let (launched_tx, launched) = oneshot::channel();
    let (dialed_tx, dialed) = oneshot::channel();
    let supervision = Supervision {
        orders,
        state,
        control: Arc::clone(&control),
        monitor_pid: monitor.pid(),
    };
    let supervisor = Supervisor {
        monitor,
        control,
        orders: orders_rx,
        state: state_tx,
        launched: Some(launched_tx),
        dialed: Some(dialed_tx),
        hello_port,
        agent: None,
        deadline: boot_deadline,
        questions: Questions::default(),
    };
    tokio::spawn(supervisor.run());
    (supervision, Milestones { launched, dialed })
}

#[derive(Debug)]
enum Event {
    Monitor(control::Event, Vec<OwnedFd>),
    MonitorGone,
    AgentLost(Loss),
    Order(Order),
    TimeUp(Limit),
    Asked,
}

struct Supervisor {
    monitor: Monitor,
    control: Arc<Control>,
    orders: mpsc::UnboundedReceiver<Order>,
    state: watch::Sender<State>,
    launched: Option<oneshot::Sender<(Running, Instant)>>,
    dialed: Option<oneshot::Sender<(UnixStream, Instant)>>,
    hello_port: u32,
    agent: Option<UnixStream>,
    deadline: Option<Deadline>,
    questions: Questions,
}

impl Supervisor {
    async fn run(mut self) {
        let (cause, tail) = loop {
            let event = self.next().await;
            if let Some(end) = self.handle(event) {
                break end;
            }
        };
        let ended = self.tear_down(cause, tail).await;
        tracing::debug!(cause = ?ended.cause, reached = ?ended.reached, "sandbox ended");
        self.state.send_replace(State::Ended(Arc::new(ended)));
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            message = self.control.recv() => monitor_event(message),
            order = self.orders.recv() => Event::Order(order.unwrap_or(Order::Stop)),
            loss = end_of(&mut self.agent) => Event::AgentLost(loss),
            limit = until(self.deadline) => Event::TimeUp(limit),
            () = ask(&self.control, self.questions.unsent()) => Event::Asked,
        }
    }

    /// Takes one event; an answer ends the sandbox, with the console's tail where it is known.
    fn handle(&mut self, event: Event) -> Option<(Cause, Option<String>)> {
        match event {
            Event::Monitor(event, fds) => return self.handle_monitor(event, fds),
            Event::MonitorGone => {
                return Some((
                    Cause::MonitorDied {
                        code: None,
                        signal: None,
                    },
                    None,
                ));
            }
            Event::AgentLost(loss) | Event::Order(Order::GiveUp(loss)) => {
                return Some((Cause::AgentLost(loss), None));
            }
            Event::Order(Order::Stop) => return Some((Cause::Stopped, None)),
            Event::TimeUp(limit) => return Some((Cause::TimeUp(limit), None)),
            Event::Order(Order::Deadline(deadline)) => self.deadline = deadline,
            Event::Order(Order::Ask(question)) => self.questions.ask(question),
            Event::Asked => self.questions.sent(),
            Event::Order(Order::WatchAgent(stream)) => {
                self.agent = Some(stream);
                self.state.send_replace(State::Running);
            }
        }
        None
    }

    fn handle_monitor(
        &mut self,
        event: control::Event,
        fds: Vec<OwnedFd>,
    ) -> Option<(Cause, Option<String>)> {
        match event {
            control::Event::Hello { protocol, .. } if protocol != control::PROTOCOL => {
                return Some((Cause::MonitorProtocol { monitor: protocol }, None));
            }
            control::Event::Hello { .. } | control::Event::Console { .. } => {}
            control::Event::Launched(running) => {
                if let Some(waiter) = self.launched.take() {
                    // A caller that stopped waiting dropped the sandbox, which ends it below.
                    let _ = waiter.send((running, Instant::now()));
                }
            }
            control::Event::LaunchFailed(error) => return Some((Cause::LaunchFailed(error), None)),
            control::Event::Dialed { host_port } => self.dialed(host_port, fds),
            control::Event::Exited { reason, console_tail } => {
                return Some((Cause::Vm(reason), Some(console_tail)));
            }
            answer => self.questions.answer(answer),
        }
        None
    }

    /// The first call on the hello port is the agent; anything else is closed, which refuses it.
    fn dialed(&mut self, host_port: u32, fds: Vec<OwnedFd>) {
        let Some(fd) = fds.into_iter().next() else { return };
        if host_port != self.hello_port {
            tracing::warn!(host_port, "guest dialed a port where nobody listens");
            return;
        }
        let stream = std::os::unix::net::UnixStream::from(fd);
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        if let (Ok(stream), Some(waiter)) = (stream, self.dialed.take()) {
            let _ = waiter.send((stream, Instant::now()));
        }
    }

    /// What a boot waits for now.
    fn step(&self) -> Step {
        match (&self.launched, &self.dialed, &self.agent) {
            (Some(_), ..) => Step::Machine,
            (_, Some(_), _) => Step::Agent,
            (.., None) => Step::Hello,
            _ => Step::Container,
        }
    }

    /// Ends the machine and reaps the monitor: afterwards nothing of the sandbox is left.
    async fn tear_down(&mut self, cause: Cause, tail: Option<String>) -> Ended {
        let (cause, LastWords { tail, exits }) = match (cause, tail) {
            (cause @ (Cause::AgentLost(_) | Cause::TimeUp(_)), None) => self.last_words(cause).await,
            (cause, tail) => (cause, LastWords::only(tail.unwrap_or_default())),
        };
        let reached = (cause == Cause::TimeUp(Limit::Boot)).then(|| Reached {
            step: self.step(),
            exits,
        });
        self.control.close();
        let cause = match (cause, self.monitor.reap(MONITOR_PATIENCE).await) {
            (Cause::MonitorDied { .. }, Ok(status)) => Cause::MonitorDied {
                code: status.code(),
                signal: status.signal(),
            },
            (cause, _) => cause,
        };
        Ended {
            cause,
            reached,
            console_tail: tail,
            monitor_log: self.monitor.log_tail().await,
        }
    }

    /// Asks for the console's tail, and for figures where a boot took too long; a machine or a monitor that dies
    /// meanwhile is the better cause.
    async fn last_words(&mut self, cause: Cause) -> (Cause, LastWords) {
        let waits_for_an_end = cause.may_be_a_sign();
        let patience = if waits_for_an_end {
            LAST_WORDS
        } else {
            LAST_WORDS / 4
        };
        let deadline = tokio::time::Instant::now() + patience;
        let mut words = LastWords::default();
        let monitor_died = Cause::MonitorDied {
            code: None,
            signal: None,
        };
        let questions: &[Request] = match cause {
            // The answer that comes last ends the waiting.
            Cause::TimeUp(Limit::Boot) => &[Request::Info, Request::Console],
            _ => &[Request::Console],
        };
        for question in questions {
            if self.control.send(question, &[]).await.is_err() {
                return (monitor_died, words);
            }
        }
        while let Ok(event) = tokio::time::timeout_at(deadline, self.control.recv()).await {
            match monitor_event(event) {
                Event::Monitor(control::Event::Exited { reason, console_tail }, _) => {
                    return (Cause::Vm(reason), LastWords::only(console_tail));
                }
                Event::Monitor(control::Event::Info(info), _) if !info.exits.is_empty() => {
                    words.exits = Some(info.exits.values().sum());
                }
                Event::Monitor(control::Event::Console { tail }, _) => {
                    words.tail = tail;
                    if !waits_for_an_end {
                        break;
                    }
                }
                Event::MonitorGone => return (monitor_died, words),
                _ => {}
            }
        }
        (cause, words)
    }
}

/// What a machine that is about to end has to say.
#[derive(Debug, Default)]
struct LastWords {
    tail: String,
    exits: Option<u64>,
}

impl LastWords {
    fn only(tail: String) -> Self {
        Self { tail, exits: None }
    }
}

fn monitor_event(message: std::io::Result<Option<(control::Event, Vec<OwnedFd>)>>) -> Event {
    match message {
        Ok(Some((event, fds))) => Event::Monitor(event, fds),
        Ok(None) => Event::MonitorGone,
        Err(error) => {
            tracing::warn!(%error, "control socket failed");
            Event::MonitorGone
        }
    }
}

/// Completes when the agent closed its hello connection, or said more there than its hello.
async fn end_of(agent: &mut Option<UnixStream>) -> Loss {
    let Some(stream) = agent else {
        return pending().await;
    };
    match read_end(stream).await {
        Err(HelloError::WentOn) => Loss::WentOn,
        Ok(()) | Err(_) => Loss::HungUp,
    }
}

/// Sends a question, if there is one. A monitor that takes no more has ended, which is an event of its own.
async fn ask(control: &Control, question: Option<(Request, Option<BorrowedFd<'_>>)>) {
    let Some((request, file)) = question else {
        return pending().await;
    };
    if let Err(error) = control.send(&request, file.as_slice()).await {
        tracing::debug!(%error, "the monitor took no question");
    }
}

async fn until(deadline: Option<Deadline>) -> Limit {
    match deadline {
        Some(Deadline { at, limit }) => {
            tokio::time::sleep_until(at.into()).await;
            limit
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_will_show_is_no_deadline() {
        assert_eq!(Deadline::after(Duration::MAX, Limit::Run), None);
        let soon = Deadline::after(Duration::from_secs(1), Limit::Boot).unwrap();
        assert!(soon.at > Instant::now() && soon.limit == Limit::Boot);
    }
}
