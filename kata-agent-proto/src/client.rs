//! The host's side of the agent's API: one method for each request.
//!
//! Owns deadlines and the detection of a lost connection. Must not know how the connection was made.

use std::future::Future;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

use crate::agent::{
    AddARPNeighborsRequest, AddSwapPathRequest, AddSwapRequest, CloseStdinRequest, CopyFileRequest,
    CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
    GetIPTablesRequest, GetIPTablesResponse, GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest,
    GuestDetailsResponse, Interfaces, ListInterfacesRequest, ListRoutesRequest, MemAgentCompactConfig,
    MemAgentMemcgConfig, MemHotplugByProbeRequest, Metrics, OOMEvent, OnlineCPUMemRequest,
    PauseContainerRequest, ReadStreamRequest, ReadStreamResponse, RemoveContainerRequest,
    RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest, ResizeVolumeRequest,
    ResumeContainerRequest, Routes, SetGuestDateTimeRequest, SetIPTablesRequest, SetIPTablesResponse,
    SetPolicyRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest, UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, VolumeStatsRequest, WaitProcessRequest, WaitProcessResponse,
    WriteStreamRequest, WriteStreamResponse,
};
use crate::agent_ttrpc::AgentServiceClient;
use crate::call::{CallError, End, Watched};
use crate::csi::VolumeStatsResponse;
use crate::frames::ANSWER_MAX_BYTES;
use crate::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use crate::health_ttrpc::HealthClient;
use crate::kata_ttrpc::GuestClient;
use crate::types::Interface;

/// A connection to the agent. Clones share it; calls on it run side by side.
///
/// A call whose future is dropped may or may not be carried out. The connection ends when the last
/// clone is dropped.
#[derive(Clone)]
pub struct Client {
    agent: AgentServiceClient,
    health: HealthClient,
    pub(crate) guest: GuestClient,
    ended: watch::Receiver<Option<End>>,
    deadline: Option<Duration>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Most bytes of a stream that one call reads: with what is around them they fit into an answer.
pub const READ_MAX_BYTES: u32 = ANSWER_MAX_BYTES / 2;

fn bounded(request: ReadStreamRequest) -> ReadStreamRequest {
    ReadStreamRequest {
        len: request.len.min(READ_MAX_BYTES),
        ..request
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

/// Defines those that wait for something to happen, without a deadline.
macro_rules! patient_calls {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $answer:ty;)+) => {$(
        $(#[$doc])*
        /// Without a deadline.
        ///
        /// # Errors
        /// A [`CallError`]; [`CallError::NotFound`] when there is no such container or process (any more).
        pub async fn $name(&self, request: $request) -> Result<$answer, CallError> {
            self.answer_at_last(self.agent.$name(Context::default(), &request)).await
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

    /// The same connection with a deadline for each call made through the result, except those that wait
    /// for something to happen, such as [`wait_process`](Client::wait_process). The agent gives up the request at the deadline, too.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Client {
            deadline: Some(deadline),
            ..self.clone()
        }
    }

    /// Returns when the connection is lost, or was ended because the agent broke the protocol: with the error of a call
    /// that was under way.
    pub async fn closed(&self) -> CallError {
        self.end().await.into()
    }

    async fn end(&self) -> End {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await;
        // An error means that the connection's task is gone: closed as well.
        end.ok().and_then(|end| end.clone()).unwrap_or(End::Closed)
    }

    /// What the agent did, where it broke the protocol.
    #[must_use]
    pub fn breach(&self) -> Option<String> {
        match &*self.ended.borrow() {
            Some(End::Broken(breach)) => Some(breach.to_string()),
            Some(End::Closed | End::Cut) | None => None,
        }
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
        /// Changes one network interface.
        update_interface(UpdateInterfaceRequest) -> Interface;
        /// Replaces the guest's routes; what is there afterwards.
        update_routes(UpdateRoutesRequest) -> Routes;
        /// The guest's network interfaces.
        list_interfaces(ListInterfacesRequest) -> Interfaces;
        /// The guest's routes.
        list_routes(ListRoutesRequest) -> Routes;
        /// Adds neighbours of the guest.
        add_arp_neighbors(AddARPNeighborsRequest) -> ();
        /// The guest's packet filter, as iptables-save prints it.
        get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse;
        /// Changes the guest's packet filter, as iptables-restore reads it.
        set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse;
        /// Brings processors and memory online that were added.
        online_cpu_mem(OnlineCPUMemRequest) -> ();
        /// Tells the guest of memory that was added and that it cannot find.
        mem_hotplug_by_probe(MemHotplugByProbeRequest) -> ();
        /// Puts a piece of a file, a directory or a link into the guest.
        copy_file(CopyFileRequest) -> ();
        /// Has the guest swap to a block device, by its place on the PCI bus.
        add_swap(AddSwapRequest) -> ();
        /// Has the guest swap to a block device or file.
        add_swap_path(AddSwapPathRequest) -> ();
        /// Has an agent that decides by a policy decide by this one.
        set_policy(SetPolicyRequest) -> ();
        /// Changes the options of ephemeral mounts.
        update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> ();
        /// Has the guest notice which shared directories are gone.
        remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> ();
        /// What a volume holds.
        get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse;
        /// Grows a volume.
        resize_volume(ResizeVolumeRequest) -> ();
        /// Figures of guest and agent, as text for Prometheus.
        get_metrics(GetMetricsRequest) -> Metrics;
        /// Settings of an agent that reclaims memory.
        mem_agent_memcg_set(MemAgentMemcgConfig) -> ();
        /// Settings of an agent that compacts memory.
        mem_agent_compact_set(MemAgentCompactConfig) -> ();
    }

    patient_calls! {
        /// The exit status of a process, as soon as it has one: before, during and after its exit, from
        /// any number of callers, until the container is removed.
        wait_process(WaitProcessRequest) -> WaitProcessResponse;
        /// The next process that the kernel killed for want of memory, by its container; each is told to one
        /// caller.
        get_oom_event(GetOOMEventRequest) -> OOMEvent;
        /// Writes to the standard input of a process that has no stream for it; as fast as it reads.
        write_stdin(WriteStreamRequest) -> WriteStreamResponse;
    }

    /// Reads from the standard output of a process that has no stream for it, as soon as there is any, and at most
    /// [`READ_MAX_BYTES`]. Without a deadline.
    ///
    /// # Errors
    /// [`CallError::EndOfStream`] at the end; otherwise as [`wait_process`](Client::wait_process).
    pub async fn read_stdout(&self, request: ReadStreamRequest) -> Result<ReadStreamResponse, CallError> {
        let request = bounded(request);
        self.answer_at_last(self.agent.read_stdout(Context::default(), &request))
            .await
    }

    /// As [`read_stdout`](Client::read_stdout), of the standard error.
    ///
    /// # Errors
    /// As there.
    pub async fn read_stderr(&self, request: ReadStreamRequest) -> Result<ReadStreamResponse, CallError> {
        let request = bounded(request);
        self.answer_at_last(self.agent.read_stderr(Context::default(), &request))
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
            end = self.end() => Err(end.into()),
            () = deadline => Err(CallError::DeadlineExceeded),
        }
    }

    /// The answer to a call without a deadline.
    async fn answer_at_last<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T, CallError> {
        let patient = Client {
            deadline: None,
            ..self.clone()
        };
        patient.answer(call).await
    }

    fn classify(&self, error: ttrpc::Error) -> CallError {
        match (CallError::from(error), &*self.ended.borrow()) {
            (CallError::Status { .. } | CallError::Closed, Some(end)) => end.clone().into(),
            (other, _) => other,
        }
    }
}
