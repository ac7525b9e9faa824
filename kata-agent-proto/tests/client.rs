//! The client against a small server, over a socketpair.
#![expect(clippy::expect_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_agent_proto::agent::{
    SignalProcessRequest, StartContainerRequest, StatsContainerRequest, WaitProcessRequest,
    WaitProcessResponse,
};
use kata_agent_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use kata_agent_proto::{CallError, Client, Failed, FailureKind, offered};
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::Code;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

/// Waits end when a signal comes; starting fails with a kind; the rest is not offered.
#[derive(Default)]
struct Small {
    ended: Notify,
}

#[async_trait]
impl AgentService for Small {
    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        Err(Failed::new(FailureKind::NotFound, request.container_id).into())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        if request.exec_id == "nobody" {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                Code::NOT_FOUND,
                "process nobody",
            )));
        }
        self.ended.notified().await;
        Ok(WaitProcessResponse {
            status: 143,
            ..Default::default()
        })
    }

    async fn signal_process(&self, _: &TtrpcContext, _: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.ended.notify_one();
        Ok(Empty::new())
    }
}

#[async_trait]
impl Health for Small {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse {
            status: ServingStatus::SERVING.into(),
            ..Default::default()
        })
    }
}

/// A client and the server it talks to.
async fn pair() -> (Client, Server) {
    let (near, far) = UnixStream::pair().expect("a socketpair");
    let small = Arc::new(Small::default());
    let mut server = Server::new()
        .add_listener(Listener::new(one_connection(far)))
        .register_service(offered(
            create_agent_service(small.clone()),
            &["StartContainer", "WaitProcess", "SignalProcess"],
        ))
        .register_service(create_health(small));
    server.start().await.expect("serving");
    (Client::new(near), server)
}

/// One connection, then no more, but not the end of the listener either.
fn one_connection(stream: UnixStream) -> impl futures_core::Stream<Item = std::io::Result<UnixStream>> {
    OnePending(Some(stream))
}

struct OnePending(Option<UnixStream>);

impl futures_core::Stream for OnePending {
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

fn wait_for(exec_id: &str) -> WaitProcessRequest {
    WaitProcessRequest {
        container_id: "c".into(),
        exec_id: exec_id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_answer_arrives() {
    let (client, _server) = pair().await;
    assert_eq!(
        client.check().await.expect("an answer").status,
        ServingStatus::SERVING.into()
    );
}

#[tokio::test]
async fn a_failure_has_its_kind() {
    let (client, _server) = pair().await;
    let request = StartContainerRequest {
        container_id: "nosuch".into(),
        ..Default::default()
    };
    assert_eq!(
        client.start_container(request).await,
        Err(CallError::Failed {
            kind: FailureKind::NotFound,
            subject: "nosuch".into()
        })
    );
}

#[tokio::test]
async fn what_is_missing_is_not_found_and_what_is_not_offered_unimplemented() {
    let (client, _server) = pair().await;
    assert_eq!(
        client.wait_process(wait_for("nobody")).await,
        Err(CallError::NotFound)
    );
    assert_eq!(
        client.stats_container(StatsContainerRequest::new()).await,
        Err(CallError::Unimplemented)
    );
}

#[tokio::test]
async fn a_wait_does_not_block_the_call_that_ends_it() {
    let (client, _server) = pair().await;
    let (status, signal) = tokio::join!(
        client.wait_process(wait_for("c")),
        client.signal_process(SignalProcessRequest::new())
    );
    signal.expect("delivered");
    assert_eq!(status.expect("a status").status, 143);
}

#[tokio::test]
async fn a_deadline_ends_a_call_but_not_a_wait() {
    let (client, _server) = pair().await;
    let hurried = client.with_deadline(Duration::from_millis(1));
    let wait = hurried.wait_process(wait_for("c"));
    let outlasted = tokio::time::timeout(Duration::from_millis(50), wait).await;
    assert!(outlasted.is_err(), "a wait has no deadline: {outlasted:?}");
    client.check().await.expect("the connection lives on");
}

#[tokio::test]
async fn a_lost_connection_ends_pending_and_later_calls() {
    let (near, far) = UnixStream::pair().expect("a socketpair");
    let client = Client::new(near);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_process(wait_for("c")).await }
    });
    // The request is on its way once its first byte can be read.
    far.readable().await.expect("a request");
    drop(far);
    assert_eq!(waiting.await.expect("no panic"), Err(CallError::Closed));
    client.closed().await;
    assert_eq!(client.check().await, Err(CallError::Closed));
}
