//! The host's side of the agent's API: one method for each request in use.
//!
//! Owns deadlines and the detection of a lost connection. Must not know how the connection was made.

use std::future::Future;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

use crate::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse, OOMEvent,
    PauseContainerRequest, RemoveContainerRequest, ReseedRandomDevRequest, ResumeContainerRequest,
    SetGuestDateTimeRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest, WaitProcessRequest,
    WaitProcessResponse,
};
use crate::agent_ttrpc::AgentServiceClient;
use crate::call::{CallError, Watched};
use crate::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use crate::health_ttrpc::HealthClient;
use crate::kata_ttrpc::GuestClient;

/// A connection to the agent. Clones share it; calls on it run side by side.
///
/// A call whose future is dropped may or may not be carried out. The connection ends when the last
/// clone is dropped.
#[derive(Clone)]
pub struct Client {
    agent: AgentServiceClient,
    health: HealthClient,
    pub(crate) guest: GuestClient,
    ended: watch::Receiver<bool>,
    deadline: Option<Duration>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Defines the methods that send a request and return the agent's answer.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $answer:ty;)+) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// A [`CallError`]; [`CallError::Closed`] when the connection is lost.
        pub async fn $name(&self, request: $request) -> Result<$answer, CallError> {
            self.answer(self.agent.$name(self.context(), &request)).await.map(<$answer as FromAnswer<_>>::from_answer)
        }
    )+};
}

/// What a method returns of the message that the agent answered with.
trait FromAnswer<T> {
    fn from_answer(answer: T) -> Self;
}

impl<T> FromAnswer<T> for T {
    fn from_answer(answer: T) -> T {
        answer
    }
}

impl FromAnswer<protobuf::well_known_types::empty::Empty> for () {
    fn from_answer(_: protobuf::well_known_types::empty::Empty) {}
}

impl Client {
    /// A client on a connection to the agent's [`port::AGENT`](crate::port::AGENT). Must be called
    /// within a Tokio runtime: the connection is read by a task.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let (stream, ended) = Watched::new(stream);
        let connection = ttrpc::r#async::Client::new(Socket::new(stream));
        Client {
            agent: AgentServiceClient::new(connection.clone()),
            health: HealthClient::new(connection.clone()),
            guest: GuestClient::new(connection),
            ended,
            deadline: None,
        }
    }

    /// The same connection with a deadline for each call made through the result, except
    /// [`wait_process`](Client::wait_process). The agent gives up the request at the deadline, too.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Client {
            deadline: Some(deadline),
            ..self.clone()
        }
    }

    /// Returns when the connection is lost.
    pub async fn closed(&self) {
        // An error means that the connection's task is gone: closed as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    calls! {
        /// Sets the guest up: its hostname and name servers. Once, before the first container.
        create_sandbox(CreateSandboxRequest) -> ();
        /// Ends every container and then the guest.
        destroy_sandbox(DestroySandboxRequest) -> ();
        /// Mounts a container's storages and creates it, without starting its process.
        create_container(CreateContainerRequest) -> ();
        /// Starts the process of a created container.
        start_container(StartContainerRequest) -> ();
        /// Starts a further process in a started container.
        exec_process(ExecProcessRequest) -> ();
        /// Sends a signal to a process, to the init (`exec_id` is the container's id), or to all
        /// processes of a container (`exec_id` is empty).
        signal_process(SignalProcessRequest) -> ();
        /// Kills what still runs in a container and releases everything of it.
        remove_container(RemoveContainerRequest) -> ();
        /// Closes a process's standard input; a terminal gets its end-of-file character.
        close_stdin(CloseStdinRequest) -> ();
        /// Sets the size of a process's terminal; kept until the process starts.
        tty_win_resize(TtyWinResizeRequest) -> ();
        /// What a container uses.
        stats_container(StatsContainerRequest) -> StatsContainerResponse;
        /// Changes the limits of a container: all that are set, or none.
        update_container(UpdateContainerRequest) -> ();
        /// Stops all processes of a container where they are.
        pause_container(PauseContainerRequest) -> ();
        /// Lets them go on.
        resume_container(ResumeContainerRequest) -> ();
        /// Feeds the guest's random number generator.
        reseed_random_dev(ReseedRandomDevRequest) -> ();
        /// Sets the guest's clock.
        set_guest_date_time(SetGuestDateTimeRequest) -> ();
        /// What the agent and its guest can do.
        get_guest_details(GuestDetailsRequest) -> GuestDetailsResponse;
    }

    /// The exit status of a process, as soon as it has one: before, during and after its exit, from
    /// any number of callers, until the container is removed. Without a deadline.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when there is no such container or process (any more).
    pub async fn wait_process(&self, request: WaitProcessRequest) -> Result<WaitProcessResponse, CallError> {
        let patient = self.patient();
        patient
            .answer(patient.agent.wait_process(Context::default(), &request))
            .await
    }

    /// The next process that the kernel killed for want of memory, by its container; each is told to one caller.
    /// Without a deadline: there may be none for long.
    ///
    /// # Errors
    /// [`CallError::NotFound`] once the sandbox is destroyed.
    pub async fn get_oom_event(&self, request: GetOOMEventRequest) -> Result<OOMEvent, CallError> {
        let patient = Client {
            deadline: None,
            ..self.clone()
        };
        patient
            .answer(patient.agent.get_oom_event(Context::default(), &request))
            .await
    }

    /// Whether the agent serves.
    ///
    /// # Errors
    /// A [`CallError`].
    pub async fn check(&self) -> Result<HealthCheckResponse, CallError> {
        self.answer(self.health.check(self.context(), &CheckRequest::new()))
            .await
    }

    /// The versions of the API and of the agent.
    ///
    /// # Errors
    /// A [`CallError`].
    pub async fn version(&self) -> Result<VersionCheckResponse, CallError> {
        self.answer(self.health.version(self.context(), &CheckRequest::new()))
            .await
    }

    pub(crate) fn context(&self) -> Context {
        self.deadline
            .map_or_else(Context::default, context::with_duration)
    }

    /// The same connection without a deadline, for what takes as long as it takes.
    pub(crate) fn patient(&self) -> Self {
        Client {
            deadline: None,
            ..self.clone()
        }
    }

    /// The answer to a call, or the loss of the connection. An answer that arrived wins.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, CallError> {
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = call => result.map_err(|error| self.classify(error)),
            () = self.closed() => Err(CallError::Closed),
            () = deadline => Err(CallError::DeadlineExceeded),
        }
    }

    fn classify(&self, error: ttrpc::Error) -> CallError {
        match CallError::from(error) {
            CallError::Status { .. } if *self.ended.borrow() => CallError::Closed,
            other => other,
        }
    }
}
