//! The API: from ttrpc messages to the sandbox and back.
//!
//! Owns the list of methods and the wording of answers; what a method does is in a file by theme. What is not
//! in the list answers UNIMPLEMENTED. A request goes on when its connection is lost, so that nothing is left
//! half done.

mod additions;
mod containers;
mod guest;
mod measurements;
mod network;
mod processes;
mod request;
mod sandbox;
mod streams;
mod volumes;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use kata_agent_proto::agent::{
    AddARPNeighborsRequest, AddSwapPathRequest, CloseStdinRequest, CopyFileRequest, CreateContainerRequest,
    CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest, GetIPTablesRequest, GetIPTablesResponse,
    GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse, Interfaces,
    ListInterfacesRequest, ListRoutesRequest, MemHotplugByProbeRequest, Metrics, OOMEvent,
    OnlineCPUMemRequest, PauseContainerRequest, ReadStreamRequest, ReadStreamResponse,
    RemoveContainerRequest, RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest,
    ResizeVolumeRequest, ResumeContainerRequest, Routes, SetGuestDateTimeRequest, SetIPTablesRequest,
    SetIPTablesResponse, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest, UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, VolumeStatsRequest, WaitProcessRequest, WaitProcessResponse,
    WriteStreamRequest, WriteStreamResponse,
};
use kata_agent_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_proto::csi::VolumeStatsResponse;
use kata_agent_proto::health::health_check_response::ServingStatus;
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use kata_agent_proto::offered;
use kata_agent_proto::types::Interface;
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::launch;
use crate::order::Call;
use crate::sandbox::{Error, Sandbox};

/// Version of the published API that the messages are of.
const API_VERSION: &str = "0.0.1";

/// The services of a sandbox.
pub(crate) fn services(sandbox: &Arc<Sandbox>) -> HashMap<String, Service> {
    let server = Arc::new(Server(sandbox.clone()));
    let mut services = offered(create_agent_service(server.clone()), &METHODS);
    services.extend(create_health(server.clone()));
    services.extend(kata_agent_proto::kata_ttrpc::create_guest(server));
    services
}

struct Server(Arc<Sandbox>);

/// The methods of `grpc.AgentService` that are offered: each is a method of [`Server`] of the same name.
macro_rules! methods {
    ($($path:literal $name:ident($request:ty) -> $answer:ty;)+) => {
        /// Their names in paths.
        const METHODS: [&str; [$($path),+].len()] = [$($path),+];

        #[async_trait]
        impl AgentService for Server {
            $(
                async fn $name(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$answer> {
                    Server::$name(self, request).await
                }
            )+
        }
    };
}

methods! {
    "CreateSandbox" create_sandbox(CreateSandboxRequest) -> Empty;
    "DestroySandbox" destroy_sandbox(DestroySandboxRequest) -> Empty;
    "GetGuestDetails" get_guest_details(GuestDetailsRequest) -> GuestDetailsResponse;
    "SetGuestDateTime" set_guest_date_time(SetGuestDateTimeRequest) -> Empty;
    "ReseedRandomDev" reseed_random_dev(ReseedRandomDevRequest) -> Empty;
    "CreateContainer" create_container(CreateContainerRequest) -> Empty;
    "StartContainer" start_container(StartContainerRequest) -> Empty;
    "RemoveContainer" remove_container(RemoveContainerRequest) -> Empty;
    "UpdateContainer" update_container(UpdateContainerRequest) -> Empty;
    "PauseContainer" pause_container(PauseContainerRequest) -> Empty;
    "ResumeContainer" resume_container(ResumeContainerRequest) -> Empty;
    "ExecProcess" exec_process(ExecProcessRequest) -> Empty;
    "SignalProcess" signal_process(SignalProcessRequest) -> Empty;
    "WaitProcess" wait_process(WaitProcessRequest) -> WaitProcessResponse;
    "CloseStdin" close_stdin(CloseStdinRequest) -> Empty;
    "TtyWinResize" tty_win_resize(TtyWinResizeRequest) -> Empty;
    "WriteStdin" write_stdin(WriteStreamRequest) -> WriteStreamResponse;
    "ReadStdout" read_stdout(ReadStreamRequest) -> ReadStreamResponse;
    "ReadStderr" read_stderr(ReadStreamRequest) -> ReadStreamResponse;
    "ListInterfaces" list_interfaces(ListInterfacesRequest) -> Interfaces;
    "UpdateInterface" update_interface(UpdateInterfaceRequest) -> Interface;
    "ListRoutes" list_routes(ListRoutesRequest) -> Routes;
    "UpdateRoutes" update_routes(UpdateRoutesRequest) -> Routes;
    "AddARPNeighbors" add_arp_neighbors(AddARPNeighborsRequest) -> Empty;
    "GetIPTables" get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse;
    "SetIPTables" set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse;
    "OnlineCPUMem" online_cpu_mem(OnlineCPUMemRequest) -> Empty;
    "MemHotplugByProbe" mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty;
    "AddSwapPath" add_swap_path(AddSwapPathRequest) -> Empty;
    "CopyFile" copy_file(CopyFileRequest) -> Empty;
    "GetVolumeStats" get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse;
    "ResizeVolume" resize_volume(ResizeVolumeRequest) -> Empty;
    "UpdateEphemeralMounts" update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty;
    "RemoveStaleVirtiofsShareMounts" remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest)
        -> Empty;
    "GetMetrics" get_metrics(GetMetricsRequest) -> Metrics;
    "StatsContainer" stats_container(StatsContainerRequest) -> StatsContainerResponse;
    "GetOOMEvent" get_oom_event(GetOOMEventRequest) -> OOMEvent;
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Failed(failed) => return failed.clone().into(),
            Error::NotFound(_) | Error::Destroyed => Code::NOT_FOUND,
            Error::Timeout(_) => Code::DEADLINE_EXCEEDED,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
    }
}

/// Carries a request out on a task of its own, which ends even when nobody waits for the answer.
async fn to_the_end<T: Send + 'static>(
    request: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(request).await {
        Ok(answer) => Ok(answer?),
        Err(error) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, error))),
    }
}

impl Server {
    /// Has a worker carry a request out as it came.
    async fn by_worker<A: Message>(&self, call: Call, request: &impl Message) -> ttrpc::Result<A> {
        let unreadable =
            |error: protobuf::Error| ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, error));
        let request = request.write_to_bytes().map_err(unreadable)?;
        let sandbox = self.0.clone();
        let answer =
            to_the_end(async move { Ok(launch::call(&sandbox.reaper, call, &request).await?) }).await?;
        A::parse_from_bytes(&answer).map_err(unreadable)
    }
}

fn guest_failure(what: &str, error: &std::io::Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, format!("{what}: {error}")))
}

#[async_trait]
impl Health for Server {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse {
            status: ServingStatus::SERVING.into(),
            ..Default::default()
        })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: API_VERSION.into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }
}
