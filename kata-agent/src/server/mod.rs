//! The API: from ttrpc messages to the sandbox and back.
//!
//! Owns which method does what, and the wording of answers. What it does not offer answers
//! UNIMPLEMENTED. A request goes on when its connection is lost, so that nothing is left half done.

mod request;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_agent_proto::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse, OOMEvent,
    PauseContainerRequest, RemoveContainerRequest, ReseedRandomDevRequest, ResumeContainerRequest,
    SetGuestDateTimeRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest, WaitProcessRequest,
    WaitProcessResponse,
};
use kata_agent_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_proto::health::health_check_response::ServingStatus;
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use kata_agent_proto::offered;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};

use self::request::{creation, execution, limits, refuse, signal_number, storages, window};
use crate::process::Process;
use crate::sandbox::{Error, Sandbox};
use crate::stats;

/// Version of the published API that the messages are of.
const API_VERSION: &str = "0.0.1";

/// Methods of `grpc.AgentService` and `grpc.Health` that are offered.
const METHODS: [&str; 20] = [
    "CreateSandbox",
    "DestroySandbox",
    "GetGuestDetails",
    "SetGuestDateTime",
    "ReseedRandomDev",
    "CreateContainer",
    "StartContainer",
    "ExecProcess",
    "SignalProcess",
    "WaitProcess",
    "RemoveContainer",
    "CloseStdin",
    "TtyWinResize",
    "UpdateContainer",
    "PauseContainer",
    "ResumeContainer",
    "StatsContainer",
    "GetOOMEvent",
    "Check",
    "Version",
];

/// The services of a sandbox.
pub(crate) fn services(sandbox: &Arc<Sandbox>) -> HashMap<String, Service> {
    let server = Arc::new(Server(sandbox.clone()));
    let mut services = create_agent_service(server.clone());
    services.extend(create_health(server));
    offered(services, &METHODS)
}

struct Server(Arc<Sandbox>);

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

fn guest_failure(what: &str, error: &std::io::Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, format!("{what}: {error}")))
}

impl Server {
    fn process(&self, container_id: &str, exec_id: &str) -> Result<Arc<Process>, Error> {
        let process = self.0.container(container_id)?.process(exec_id);
        process.ok_or_else(|| Error::NotFound(format!("{container_id}/{exec_id}")))
    }

    fn send_signal(&self, request: &SignalProcessRequest) -> Result<(), Error> {
        let container = self.0.container(&request.container_id)?;
        let signal = signal_number(request.signal)?;
        if request.exec_id.is_empty() {
            return Ok(container.signal_all(signal)?);
        }
        let process = self.process(&request.container_id, &request.exec_id)?;
        Ok(container.signal(&process, signal)?)
    }
}

#[async_trait]
impl AgentService for Server {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        refuse(request.sandbox_pidns, "a shared PID namespace")?;
        refuse(!request.kernel_modules.is_empty(), "loading kernel modules")?;
        refuse(!request.guest_hook_path.is_empty(), "hooks of the guest")?;
        let sandbox = self.0.clone();
        to_the_end(async move {
            let CreateSandboxRequest {
                sandbox_id,
                hostname,
                dns,
                storages: list,
                ..
            } = request;
            sandbox.set_up(sandbox_id, hostname, dns, storages(list)?).await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.0.clone();
        to_the_end(async move {
            sandbox.destroy().await;
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let sandbox = self.0.clone();
        to_the_end(async move {
            let created = match creation(request) {
                Ok(creation) => sandbox.create(creation).await,
                Err(error) => Err(error),
            };
            created.inspect_err(|_| sandbox.unclaimed.forget(ports))
        })
        .await?;
        Ok(Empty::new())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = self.0.clone();
        to_the_end(async move { sandbox.start(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let sandbox = self.0.clone();
        to_the_end(async move {
            let executed = match execution(request) {
                Ok(execution) => sandbox.exec(execution).await,
                Err(error) => Err(error),
            };
            executed.inspect_err(|_| sandbox.unclaimed.forget(ports))
        })
        .await?;
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.send_signal(&request)?;
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let status = process.wait().await.ok_or(Error::NotFound(request.exec_id))?;
        Ok(WaitProcessResponse {
            status,
            ..Default::default()
        })
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
        let sandbox = self.0.clone();
        to_the_end(async move { sandbox.remove(&request.container_id, timeout).await }).await?;
        Ok(Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.process(&request.container_id, &request.exec_id)?
            .close_stdin();
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        let size = window(request.row, request.column)?;
        self.process(&request.container_id, &request.exec_id)?
            .resize(size)?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let container = self.0.container(&request.container_id)?;
        let cgroup = stats::read(&container.places.cgroup);
        let network = stats::network().map_err(|error| guest_failure("network figures", &error))?;
        Ok(StatsContainerResponse {
            cgroup_stats: Some(cgroup).into(),
            network_stats: network,
            ..Default::default()
        })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = self.0.clone();
        to_the_end(async move {
            // Who there is comes before what is asked of it.
            sandbox.container(&request.container_id)?;
            let limits = limits(request.resources.as_ref())?;
            sandbox.update(&request.container_id, limits).await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.container(&request.container_id)?.pause().await?;
        Ok(Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.container(&request.container_id)?.resume().await?;
        Ok(Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        let container_id = self.0.oom.next().await.ok_or(Error::Destroyed)?;
        Ok(OOMEvent {
            container_id,
            ..Default::default()
        })
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: ReseedRandomDevRequest,
    ) -> ttrpc::Result<Empty> {
        self.0
            .guest()
            .reseed(&request.data)
            .map_err(|error| guest_failure("entropy", &error))?;
        Ok(Empty::new())
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> ttrpc::Result<Empty> {
        self.0
            .guest()
            .set_time(request.sec, request.usec)
            .map_err(|error| guest_failure("clock", &error))?;
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        Ok(self.0.guest().details(&request))
    }
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
