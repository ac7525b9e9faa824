//! The client against an agent that behaves as Kata's own does: no hello, streams by calls, words instead of kinds, and
//! generated answers for what it has not.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_agent_proto::agent::*;
use kata_agent_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use kata_agent_proto::kata::{CopyRequest, KernelLogRequest, ReceiptRequest};
use kata_agent_proto::{CallError, Client, oci};
use protobuf::MessageField;
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::Code;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

/// One process, whose output is its input in capitals.
#[derive(Default)]
struct Process {
    output: VecDeque<u8>,
    ended: Option<i32>,
}

/// What there is, by container and process.
#[derive(Default)]
struct Kata {
    processes: Mutex<HashMap<(String, String), Process>>,
    changed: Notify,
}

/// As `ttrpc_error` of Kata's agent: the code is nearly always the same, and the words are a debug print.
fn words<T>(code: Code, words: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, words)))
}

impl Kata {
    /// Looks, until there is something to answer, or there is no such process.
    async fn until<T>(
        &self,
        id: &str,
        exec_id: &str,
        mut look: impl FnMut(&mut Process) -> Option<T>,
    ) -> ttrpc::Result<T> {
        loop {
            let changed = self.changed.notified();
            {
                let mut processes = self.processes.lock().unwrap();
                match processes.get_mut(&(id.to_owned(), exec_id.to_owned())) {
                    None => return words(Code::INTERNAL, "Invalid container id"),
                    Some(process) => {
                        if let Some(found) = look(process) {
                            return Ok(found);
                        }
                    }
                }
            }
            changed.await;
        }
    }
}

#[async_trait]
impl AgentService for Kata {
    async fn create_sandbox(&self, _: &TtrpcContext, _: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        if request.oci.is_none() {
            return words(Code::INTERNAL, "EINVAL: Invalid argument");
        }
        let name = (request.container_id, request.exec_id);
        self.processes.lock().unwrap().insert(name, Process::default());
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, _: StartContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        let length = request.data.len();
        let put = |process: &mut Process| {
            process.output.extend(request.data.to_ascii_uppercase());
            Some(())
        };
        self.until(&request.container_id, &request.exec_id, put).await?;
        self.changed.notify_waiters();
        Ok(WriteStreamResponse {
            len: u32::try_from(length).unwrap(),
            ..Default::default()
        })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let most = usize::try_from(request.len).unwrap();
        let take = |process: &mut Process| {
            let count = process.output.len().min(most);
            let data: Vec<u8> = process.output.drain(..count).collect();
            (!data.is_empty() || process.ended.is_some()).then_some(data)
        };
        let data = self.until(&request.container_id, &request.exec_id, take).await?;
        if data.is_empty() {
            return words(
                Code::INTERNAL,
                "read meet eof\n\nStack backtrace:\n   0: anyhow::error",
            );
        }
        Ok(ReadStreamResponse {
            data,
            ..Default::default()
        })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        let status = 128 + i32::try_from(request.signal).unwrap();
        let end = |process: &mut Process| {
            process.ended = Some(status);
            process.ended
        };
        self.until(&request.container_id, &request.exec_id, end).await?;
        self.changed.notify_waiters();
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let status = self
            .until(&request.container_id, &request.exec_id, |process| process.ended)
            .await?;
        Ok(WaitProcessResponse {
            status,
            ..Default::default()
        })
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        _: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        words(Code::INVALID_ARGUMENT, "invalid container id")
    }
}

#[async_trait]
impl Health for Kata {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse::new())
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: "0.0.1".into(),
            agent_version: "4.0.0".into(),
            ..Default::default()
        })
    }
}

struct Once(Option<UnixStream>);

impl futures_core::Stream for Once {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.take().map_or(std::task::Poll::Pending, |stream| {
            std::task::Poll::Ready(Some(Ok(stream)))
        })
    }
}

async fn pair() -> (Client, Server) {
    let (near, far) = UnixStream::pair().unwrap();
    let kata = Arc::new(Kata::default());
    let mut server = Server::new()
        .add_listener(Listener::new(Once(Some(far))))
        .register_service(create_agent_service(kata.clone()))
        .register_service(create_health(kata));
    server.start().await.unwrap();
    (Client::new(near), server)
}

#[tokio::test]
async fn a_container_lives_in_a_guest_of_katas_agent() {
    let (client, _server) = pair().await;
    assert_eq!(client.version().await.unwrap().agent_version, "4.0.0");
    client.create_sandbox(CreateSandboxRequest::new()).await.unwrap();
    let (container_id, exec_id) = ("c1".to_owned(), "c1".to_owned());
    let create = CreateContainerRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        oci: MessageField::some(oci::Spec::new()),
        ..Default::default()
    };
    client.create_container(create).await.unwrap();
    let start = StartContainerRequest {
        container_id: container_id.clone(),
        ..Default::default()
    };
    client.start_container(start).await.unwrap();
    let write = WriteStreamRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        data: b"some words".to_vec(),
        ..Default::default()
    };
    assert_eq!(client.write_stdin(write).await.unwrap().len, 10);
    let read = ReadStreamRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        len: 4,
        ..Default::default()
    };
    assert_eq!(client.read_stdout(read.clone()).await.unwrap().data, b"SOME");
    assert_eq!(client.read_stdout(read.clone()).await.unwrap().data, b" WOR");
    let wait = WaitProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        ..Default::default()
    };
    let kill = SignalProcessRequest {
        container_id,
        exec_id,
        signal: 9,
        ..Default::default()
    };
    let (status, killed) = tokio::join!(client.wait_process(wait), client.signal_process(kill));
    killed.unwrap();
    assert_eq!(status.unwrap().status, 137);
    assert_eq!(client.read_stdout(read.clone()).await.unwrap().data, b"DS");
    assert_eq!(
        client.read_stdout(read).await.unwrap_err(),
        CallError::EndOfStream
    );
}

#[tokio::test]
async fn its_errors_are_words_with_a_code() {
    let (client, _server) = pair().await;
    let status = |code: i32, message: &str| CallError::Status {
        code,
        message: message.into(),
    };
    let create = CreateContainerRequest::new();
    assert_eq!(
        client.create_container(create).await,
        Err(status(13, "EINVAL: Invalid argument"))
    );
    assert_eq!(
        client
            .stats_container(StatsContainerRequest::new())
            .await
            .unwrap_err(),
        status(3, "invalid container id")
    );
    assert_eq!(
        client.wait_process(WaitProcessRequest::new()).await.unwrap_err(),
        status(13, "Invalid container id")
    );
}

#[tokio::test]
async fn what_it_has_not_is_not_mistaken_for_something_that_is_gone() {
    let (client, _server) = pair().await;
    assert_eq!(
        client.resize_volume(ResizeVolumeRequest::new()).await,
        Err(CallError::Unimplemented)
    );
    assert_eq!(
        client.get_metrics(GetMetricsRequest::new()).await.unwrap_err(),
        CallError::Unimplemented
    );
}

#[tokio::test]
async fn what_is_this_projects_own_is_not_offered_and_nobody_waits_for_it() {
    let (client, _server) = pair().await;
    // They are given all the time of a process's life, so that it is the agent who has to answer.
    let answers = async {
        [
            client.receipt(ReceiptRequest::new()).await.map(drop),
            client.copy_in(CopyRequest::new()).await,
            client.copy_out(CopyRequest::new()).await,
            client.kernel_log(KernelLogRequest::new()).await,
        ]
    };
    let answers = tokio::time::timeout(Duration::from_secs(30), answers).await;
    assert_eq!(answers.unwrap(), [const { Err(CallError::Unimplemented) }; 4]);
    client.check().await.unwrap();
}
