//! The round trip of one request: the generated client and server over a socketpair.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![expect(clippy::expect_used, reason = "a benchmark may panic")]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use criterion::{Criterion, criterion_group, criterion_main};
use kata_agent_proto::Client;
use kata_agent_proto::health::health_check_response::ServingStatus;
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse};
use kata_agent_proto::health_ttrpc::{Health, create_health};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

struct Serving;

#[async_trait::async_trait]
impl Health for Serving {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse {
            status: ServingStatus::SERVING.into(),
            ..Default::default()
        })
    }
}

/// One connection, then none, without an end.
struct One(Option<UnixStream>);

impl futures_core::Stream for One {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0
            .take()
            .map_or(Poll::Pending, |stream| Poll::Ready(Some(Ok(stream))))
    }
}

async fn connect() -> (Client, Server) {
    let (near, far) = UnixStream::pair().expect("a socketpair");
    let mut server = Server::new()
        .add_listener(Listener::new(One(Some(far))))
        .register_service(create_health(Arc::new(Serving)));
    server.start().await.expect("serving");
    (Client::new(near), server)
}

fn round_trip(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (client, _server) = runtime.block_on(connect());
    criterion.bench_function("rpc/round_trip", |bencher| {
        bencher.iter(|| runtime.block_on(client.check()).expect("an answer"));
    });
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
