//! The API: from ttrpc messages to the sandbox and back.
//!
//! Owns the reading of requests and the wording of answers. What it does not offer answers
//! UNIMPLEMENTED. A request goes on when its connection is lost, so that nothing is left half done.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_agent_proto::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GuestDetailsRequest, GuestDetailsResponse, RemoveContainerRequest,
    ReseedRandomDevRequest, SetGuestDateTimeRequest, SignalProcessRequest, StartContainerRequest,
    StatsContainerRequest, StatsContainerResponse, StringUser, TtyWinResizeRequest, WaitProcessRequest,
    WaitProcessResponse,
};
use kata_agent_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_proto::health::health_check_response::ServingStatus;
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use kata_agent_proto::{Failed, FailureKind, agent, oci, offered};
use protobuf::well_known_types::empty::Empty;
use rustix::termios::Winsize;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::order::{Storage, User};
use crate::process::{Ports, Process};
use crate::sandbox::{Creation, Error, Execution, Sandbox};
use crate::{spec, stats};

/// Version of the published API that the messages are of.
const API_VERSION: &str = "0.0.1";

/// Largest signal number (signal(7), SIGRTMAX).
const SIGNAL_MAX: i32 = 64;

/// Methods of `grpc.AgentService` and `grpc.Health` that are offered.
const METHODS: [&str; 16] = [
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
    "StatsContainer",
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
            Error::NotFound(_) => Code::NOT_FOUND,
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

fn refuse(asked: bool, what: &str) -> Result<(), Error> {
    if asked {
        Err(Failed::new(FailureKind::Unsupported, what).into())
    } else {
        Ok(())
    }
}

fn guest_failure(what: &str, error: &std::io::Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, format!("{what}: {error}")))
}

fn storages(storages: Vec<agent::Storage>) -> Result<Vec<Storage>, Error> {
    let storage = |storage: agent::Storage| {
        refuse(storage.fs_group.is_some(), "ownership of a storage")?;
        Ok(Storage {
            driver: storage.driver,
            driver_options: storage.driver_options,
            source: storage.source,
            fstype: storage.fstype,
            options: storage.options,
            mount_point: storage.mount_point,
        })
    };
    storages.into_iter().map(storage).collect()
}

/// The user of a request: its own field, else the specification's name.
fn user(given: Option<StringUser>, process: Option<&oci::Process>) -> Option<User> {
    let name = || {
        let user = process?.user.as_ref()?;
        (!user.username.is_empty()).then(|| User {
            uid: user.username.clone(),
            ..User::default()
        })
    };
    let given = given.map(|user| User {
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
    });
    given.or_else(name)
}

fn terminal(process: &oci::Process) -> Result<bool, Error> {
    if let Some(size) = process.console_size.as_ref() {
        window(size.height, size.width)?;
    }
    Ok(process.terminal)
}

fn window(rows: u32, columns: u32) -> Result<Winsize, Error> {
    let cells = |count: u32| {
        u16::try_from(count).map_err(|_| Failed::new(FailureKind::Invalid, format!("terminal size {count}")))
    };
    Ok(Winsize {
        ws_row: cells(rows)?,
        ws_col: cells(columns)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

fn signal_number(signal: u32) -> Result<i32, Error> {
    let number = i32::try_from(signal)
        .ok()
        .filter(|signal| (1..=SIGNAL_MAX).contains(signal));
    Ok(number.ok_or_else(|| Failed::new(FailureKind::Invalid, format!("signal {signal}")))?)
}

fn creation(request: CreateContainerRequest) -> Result<Creation, Error> {
    refuse(request.sandbox_pidns, "a shared PID namespace")?;
    refuse(!request.devices.is_empty(), "devices")?;
    refuse(!request.shared_mounts.is_empty(), "shared mounts")?;
    let named = !request.exec_id.is_empty() && request.exec_id != request.container_id;
    refuse(named, "an init with a name other than its container's")?;
    let oci = request.oci.as_ref().unwrap_or_default();
    let process = oci.process.as_ref();
    Ok(Creation {
        spec: spec::convert(oci)?,
        user: user(request.string_user.into_option(), process),
        terminal: process.map(terminal).transpose()?.unwrap_or(false),
        id: request.container_id,
        storages: storages(request.storages)?,
        ports: Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        },
    })
}

fn execution(request: ExecProcessRequest) -> Result<Execution, Error> {
    let process = request.process.as_ref().unwrap_or_default();
    Ok(Execution {
        process: spec::convert_process(process)?,
        terminal: terminal(process)?,
        user: user(request.string_user.into_option(), request.process.as_ref()),
        container_id: request.container_id,
        exec_id: request.exec_id,
        ports: Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
        },
    })
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
        self.0.container(&request.container_id)?.start()?;
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
        let stats = stats::read(&container.places.cgroup);
        Ok(StatsContainerResponse {
            cgroup_stats: Some(stats).into(),
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
