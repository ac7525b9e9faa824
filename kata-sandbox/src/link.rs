//! The way to a running sandbox's agent: calls and streams, each raced against the sandbox's end.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kata_agent_proto::{CallError, Client, FailureKind, port};
use kata_vmm::control::Request;
use tokio::sync::watch;

use crate::ending::Ended;
use crate::error::{Error, ErrorKind};
use crate::launch::Control;
use crate::report::Stage;
use crate::supervise::State;

/// Host ports of our connections start here, above any that a guest program would pick.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// How long a sandbox whose agent stopped answering may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Connections into one guest. Asking for one is a message to the monitor and no round trip.
#[derive(Debug)]
pub(crate) struct Dialer {
    control: Arc<Control>,
    next_port: AtomicU32,
}

impl Dialer {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            next_port: AtomicU32::new(FIRST_HOST_PORT),
        }
    }

    /// A stream to `guest_port` and the host port that the guest sees. Bytes may be written at once;
    /// the stream closes if nobody listens.
    pub(crate) async fn dial(&self, guest_port: u32) -> io::Result<(u32, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let host_port = self.hand_over(guest_port, &theirs, false).await?;
        Ok((host_port, ours))
    }

    /// Makes somebody else's stream one to `guest_port`, and has it told when the guest accepted.
    pub(crate) async fn pass_on(&self, guest_port: u32, stream: &impl AsFd) -> io::Result<()> {
        self.hand_over(guest_port, stream, true).await.map(drop)
    }

    async fn hand_over(&self, guest_port: u32, stream: &impl AsFd, greeted: bool) -> io::Result<u32> {
        let host_port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let request = Request::Connect {
            guest_port,
            host_port,
            greeted,
        };
        self.control.send(&request, &[stream.as_fd()]).await?;
        Ok(host_port)
    }
}

/// The agent of one running sandbox.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    dialer: Dialer,
    state: watch::Receiver<State>,
}

impl Link {
    pub(crate) fn new(client: Client, dialer: Dialer, state: watch::Receiver<State>) -> Self {
        Self {
            client,
            dialer,
            state,
        }
    }

    /// Waits for an agent's answer or the sandbox's end, whichever comes first.
    pub(crate) async fn call<T>(
        &self,
        stage: Stage,
        what: &str,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, Error> {
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            ended = ended(self.state.clone()) => return Err(ended.error(stage)),
        };
        match answer {
            Ok(value) => Ok(value),
            // The sandbox ends with the connection to its agent, and the supervisor knows the better reason.
            Err(error @ (CallError::Closed | CallError::Cut | CallError::Broken { .. })) => {
                Err(self.lost(stage, error).await)
            }
            Err(error @ (CallError::Failed { .. } | CallError::NotFound)) => {
                Err(call_error(stage, what, error))
            }
            // What else goes wrong with a call to an agent that is gone, goes wrong because it is gone.
            Err(error) => Err(match &*self.state.borrow() {
                State::Ended(ended) => ended.error(stage),
                State::Booting | State::Running => call_error(stage, what, error),
            }),
        }
    }

    /// Makes a client's stream one to a port of the guest; see [`Dialer::pass_on`].
    pub(crate) async fn pass_on(&self, port: u32, stream: &impl AsFd) -> io::Result<()> {
        self.dialer.pass_on(port, stream).await
    }

    /// Returns when the sandbox has ended.
    pub(crate) async fn over(&self) {
        ended(self.state.clone()).await;
    }

    /// A connection for one standard stream.
    pub(crate) async fn stream(&self, stage: Stage) -> Result<(u32, UnixStream), Error> {
        self.dial(port::STREAM, stage).await
    }

    /// A connection to a port of the guest, with the port that the guest sees.
    pub(crate) async fn dial(&self, guest_port: u32, stage: Stage) -> Result<(u32, UnixStream), Error> {
        match self.dialer.dial(guest_port).await {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.closed(stage).await),
            Err(error) => {
                let message = format!("cannot connect to port {guest_port} of the guest");
                Err(Error::new(ErrorKind::Io, stage, message).with_source(error))
            }
        }
    }

    /// Completes when the sandbox has ended.
    pub(crate) async fn ended(&self) {
        ended(self.state()).await;
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The way to the monitor.
    pub(crate) fn control(&self) -> &Control {
        &self.dialer.control
    }

    /// Why the agent's connection closed: the sandbox ends, and the supervisor knows the reason.
    pub(crate) async fn closed(&self, stage: Stage) -> Error {
        self.lost(stage, CallError::Closed).await
    }

    async fn lost(&self, stage: Stage, end: CallError) -> Error {
        match tokio::time::timeout(LAST_WORDS, ended(self.state.clone())).await {
            Ok(ended) => ended.error(stage),
            Err(_) => {
                Error::new(ErrorKind::AgentLost, stage, "the agent closed its connection").with_source(end)
            }
        }
    }
}

/// Completes when the sandbox has ended and nothing is left of it.
pub(crate) async fn ended(mut state: watch::Receiver<State>) -> Arc<Ended> {
    loop {
        if let State::Ended(ended) = &*state.borrow_and_update() {
            return Arc::clone(ended);
        }
        if state.changed().await.is_err() {
            // The runtime that supervised is being torn down; its last word may still stand.
            return match &*state.borrow() {
                State::Ended(ended) => Arc::clone(ended),
                State::Booting | State::Running => Arc::new(Ended::stopped()),
            };
        }
    }
}

fn call_error(stage: Stage, what: &str, error: CallError) -> Error {
    let (kind, message) = match &error {
        CallError::Failed { kind, subject } => failed(*kind, subject, what),
        CallError::Unimplemented => (
            ErrorKind::Unsupported,
            format!("cannot {what}: this agent does not offer it"),
        ),
        CallError::NotFound => (ErrorKind::NotFound, format!("cannot {what}: it does not exist")),
        _ => (ErrorKind::Agent, format!("cannot {what}")),
    };
    Error::new(kind, stage, message).with_source(error)
}

fn failed(kind: FailureKind, subject: &str, what: &str) -> (ErrorKind, String) {
    match kind {
        FailureKind::NotFound => (
            ErrorKind::CommandNotFound,
            format!("command {subject:?} was not found in the container"),
        ),
        FailureKind::NotExecutable => (
            ErrorKind::CommandNotExecutable,
            format!("command {subject:?} cannot be executed"),
        ),
        FailureKind::NoSuchDirectory => (
            ErrorKind::NoSuchDirectory,
            format!("working directory {subject:?} does not exist"),
        ),
        FailureKind::NoSuchUser => (
            ErrorKind::NoSuchUser,
            format!("user {subject:?} does not exist in the container"),
        ),
        FailureKind::NoSuchGroup => (
            ErrorKind::NoSuchUser,
            format!("group {subject:?} does not exist in the container"),
        ),
        FailureKind::NoSuchFile => (
            ErrorKind::NoSuchFile,
            format!("cannot {what}: {subject} does not exist in the container"),
        ),
        FailureKind::NotADirectory => (
            ErrorKind::NotADirectory,
            format!("cannot {what}: in the container, {subject} is in the way"),
        ),
        FailureKind::NoSpace => (
            ErrorKind::NoSpace,
            format!("cannot {what}: in the container there is no space for {subject}"),
        ),
        FailureKind::File => (
            ErrorKind::Agent,
            format!("cannot {what}: in the container, {subject}"),
        ),
        FailureKind::Unsupported => (ErrorKind::Unsupported, format!("cannot {what}: {subject}")),
        FailureKind::Invalid => (ErrorKind::InvalidContainer, format!("cannot {what}: {subject}")),
        FailureKind::AlreadyExists => (
            ErrorKind::InvalidState,
            format!("cannot {what}: {subject} exists already"),
        ),
        FailureKind::NotRunning => (
            ErrorKind::InvalidState,
            format!("cannot {what}: it is not running"),
        ),
        _ => (ErrorKind::Agent, format!("cannot {what}")),
    }
}

#[cfg(test)]
mod tests;
