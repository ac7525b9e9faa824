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

use kata_vmm::control::{self, LaunchError, Request};
use kata_vmm::machine::{Running, VmExit};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, ErrorKind};
use crate::launch::{Control, Monitor};
use crate::questions::{Question, Questions};
use crate::report::Stage;

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

/// How a sandbox ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) cause: Cause,
    /// How far it had come, where its time was up before it was ready.
    pub(crate) reached: Option<Reached>,
    pub(crate) console_tail: String,
    pub(crate) monitor_log: String,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    Stopped,
    TimeUp(Limit),
    LaunchFailed(LaunchError),
    Vm(VmExit),
    MonitorDied { code: Option<i32>, signal: Option<i32> },
    MonitorProtocol { monitor: u32 },
    AgentLost,
}

/// The last that is known of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    step: Step,
    /// How often the machine's processors came back to the monitor, where it is the monitor that runs them.
    exits: Option<u64>,
}

/// What a boot waits for, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Machine,
    Agent,
    SetUp,
    Container,
}

/// What a deadline limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Getting ready, until the container is created.
    Boot,
    /// The container's run.
    Run,
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
    /// The agent said hello; this stream ends when the agent does.
    WatchAgent(UnixStream),
    /// End the sandbox at this time; `None` takes the deadline away.
    Deadline(Option<Deadline>),
    /// Ask the machine.
    Ask(Question),
    /// End the sandbox.
    Stop,
    /// End the sandbox: its agent cannot be trusted.
    GiveUp,
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
    AgentLost,
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
            () = end_of(&mut self.agent) => Event::AgentLost,
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
            Event::AgentLost | Event::Order(Order::GiveUp) => return Some((Cause::AgentLost, None)),
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
            (.., None) => Step::SetUp,
            _ => Step::Container,
        }
    }

    /// Ends the machine and reaps the monitor: afterwards nothing of the sandbox is left.
    async fn tear_down(&mut self, cause: Cause, tail: Option<String>) -> Ended {
        let (cause, LastWords { tail, exits }) = match (cause, tail) {
            (cause @ (Cause::AgentLost | Cause::TimeUp(_)), None) => self.last_words(cause).await,
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
        let patience = if cause == Cause::AgentLost {
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
                    if cause != Cause::AgentLost {
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

/// Completes when the agent closed its hello connection; what it may still say is ignored.
async fn end_of(agent: &mut Option<UnixStream>) {
    let Some(stream) = agent else {
        return pending().await;
    };
    let mut ignored = [0; 64];
    while matches!(stream.read(&mut ignored).await, Ok(n) if n > 0) {}
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

impl Ended {
    /// The error of a call that this end cut short.
    pub(crate) fn error(&self, stage: Stage) -> Error {
        let (kind, message) = self.describe();
        let message = match self.monitor_log.as_str() {
            "" => message,
            log => format!("{message}; the monitor says: {log}"),
        };
        let error = Error::new(kind, stage, message)
            .sandbox_lost()
            .with_console(self.console_tail.clone());
        match &self.cause {
            Cause::LaunchFailed(cause) => error.with_source(cause.clone()),
            _ => error,
        }
    }

    fn describe(&self) -> (ErrorKind, String) {
        match &self.cause {
            Cause::Stopped => (ErrorKind::Stopped, "the sandbox was stopped".into()),
            Cause::TimeUp(Limit::Boot) => (ErrorKind::BootTimedOut, self.describe_boot()),
            Cause::TimeUp(Limit::Run) => (
                ErrorKind::TimedOut,
                "the container ran longer than its timeout".into(),
            ),
            Cause::LaunchFailed(error) => describe_launch(error),
            Cause::Vm(VmExit::GuestReset) => (
                ErrorKind::GuestPanicked,
                "the guest kernel panicked or reset the machine".into(),
            ),
            Cause::Vm(VmExit::GuestPanic) => (ErrorKind::GuestPanicked, "the guest kernel panicked".into()),
            Cause::Vm(VmExit::VcpuStopped(report)) => (ErrorKind::Hypervisor, report.to_string()),
            Cause::Vm(VmExit::PowerOff) => {
                (ErrorKind::GuestPoweredOff, "the guest powered itself off".into())
            }
            Cause::Vm(VmExit::Killed) => (ErrorKind::Stopped, "the machine was killed".into()),
            Cause::Vm(VmExit::HypervisorDied {
                code,
                signal,
                stderr_tail,
            }) => (
                ErrorKind::Hypervisor,
                format!("the hypervisor {}: {stderr_tail}", died(*code, *signal)),
            ),
            Cause::MonitorDied { code, signal } => (
                ErrorKind::Monitor,
                format!("the monitor {}", died(*code, *signal)),
            ),
            Cause::MonitorProtocol { monitor } => (
                ErrorKind::VersionMismatch,
                format!(
                    "the monitor speaks control protocol {monitor}, this library {}; use programs of one version",
                    control::PROTOCOL
                ),
            ),
            Cause::AgentLost => (ErrorKind::AgentLost, "the agent in the guest is gone".into()),
        }
    }
}

impl Ended {
    fn describe_boot(&self) -> String {
        let late = "the sandbox was not ready in time";
        let Some(Reached { step, exits }) = self.reached else {
            return late.into();
        };
        let waited = match step {
            Step::Machine => "the hypervisor had not started the machine",
            Step::Agent => "the machine ran, and the agent in it had not called",
            Step::SetUp => "the agent had called, and was not set up",
            Step::Container => "the agent had answered, and the container was not created",
        };
        let mut said = format!("{late}: {waited}");
        if let Some(exits) = exits {
            said += &format!("; its processors had come back to the monitor {exits} times");
        }
        if step == Step::Agent && self.console_tail.is_empty() {
            said += "; its console is empty, for with `quiet` a kernel prints only what fails";
        }
        said
    }
}

fn describe_launch(error: &LaunchError) -> (ErrorKind, String) {
    match error {
        LaunchError::Protocol { .. } => (
            ErrorKind::VersionMismatch,
            "the monitor is of another version".into(),
        ),
        LaunchError::Unsupported { .. } => (ErrorKind::Unsupported, "the machine cannot be built".into()),
        LaunchError::Boot { .. } | LaunchError::Spawn { .. } | LaunchError::Ended { .. } => {
            (ErrorKind::Hypervisor, "the machine did not start".into())
        }
        LaunchError::Monitor { .. } => (ErrorKind::Monitor, "the monitor failed".into()),
    }
}

fn died(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (Some(code), None) => format!("ended with status {code}"),
        (None, None) => "ended".into(),
    }
}

impl Ended {
    /// The end of a sandbox whose supervisor went away with its runtime.
    pub(crate) fn stopped() -> Self {
        Self {
            cause: Cause::Stopped,
            reached: None,
            console_tail: String::new(),
            monitor_log: String::new(),
        }
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

    #[test]
    fn a_boot_that_takes_too_long_says_how_far_it_came() {
        let said = |step, exits, tail: &str| {
            let ended = Ended {
                cause: Cause::TimeUp(Limit::Boot),
                reached: Some(Reached { step, exits }),
                console_tail: tail.into(),
                ..Ended::stopped()
            };
            ended.error(Stage::Agent).to_string()
        };
        assert_eq!(
            said(Step::Agent, Some(12), ""),
            "guest agent: the sandbox was not ready in time: the machine ran, and the agent in it had not called; its \
             processors had come back to the monitor 12 times; its console is empty, for with `quiet` a kernel prints \
             only what fails"
        );
        assert_eq!(
            said(Step::Agent, None, "Kernel panic"),
            "guest agent: the sandbox was not ready in time: the machine ran, and the agent in it had not called"
        );
        assert!(said(Step::Machine, None, "").ends_with("the hypervisor had not started the machine"));
    }

    #[test]
    fn the_cause_of_an_end_has_a_kind_wherever_it_was_noticed() {
        let ended = |cause| Ended {
            cause,
            ..Ended::stopped()
        };
        let kind = |cause, stage| ended(cause).error(stage).kind();
        assert_eq!(
            kind(Cause::TimeUp(Limit::Boot), Stage::Create),
            ErrorKind::BootTimedOut
        );
        assert_eq!(kind(Cause::TimeUp(Limit::Run), Stage::Exit), ErrorKind::TimedOut);
        assert_eq!(
            kind(Cause::Vm(VmExit::GuestReset), Stage::Exit),
            ErrorKind::GuestPanicked
        );
        assert_eq!(kind(Cause::Stopped, Stage::Exit), ErrorKind::Stopped);
    }
}
