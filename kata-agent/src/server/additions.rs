//! What this project adds to Kata's API: `kata.sandbox.v1.Guest`.
//!
//! Owns the reading of its requests and the wording of its answers. Must not know how files or logs travel.

use std::sync::Arc;

use async_trait::async_trait;
use kata_agent_proto::kata::{
    ContainerUsage, CopyRequest, CopyResponse, KernelLogRequest, KernelLogResponse, ReceiptRequest,
    ReceiptResponse,
};
use kata_agent_proto::kata_ttrpc;
use ttrpc::r#async::TtrpcContext;

use super::{Server, to_the_end};
use crate::copies::{self, Asked};
use crate::order::Direction;
use crate::sandbox::Error;
use crate::{kernel_log, stats};

#[async_trait]
impl kata_ttrpc::Guest for Server {
    async fn receipt(&self, _: &TtrpcContext, request: ReceiptRequest) -> ttrpc::Result<ReceiptResponse> {
        let container = self.0.container(&request.container_id)?;
        let process = self.process(&request.container_id, &request.exec_id)?;
        let receipt = process.receipt().await.ok_or(Error::NotFound(request.exec_id))?;
        let is_init = Arc::ptr_eq(&process, container.init());
        let usage = is_init.then(|| stats::used(&container.places.cgroup)).flatten();
        Ok(ReceiptResponse {
            status: receipt.status,
            started_ns: receipt.started_ns,
            wall_ns: receipt.wall_ns,
            user_ns: receipt.usage.user_ns,
            system_ns: receipt.usage.system_ns,
            memory_peak_bytes: receipt.usage.memory_peak_bytes,
            stdin_bytes: receipt.moved.stdin_bytes,
            stdout_bytes: receipt.moved.stdout_bytes,
            stderr_bytes: receipt.moved.stderr_bytes,
            container: usage
                .map(|usage| ContainerUsage {
                    user_ns: usage.user_ns,
                    system_ns: usage.system_ns,
                    memory_peak_bytes: usage.memory_peak_bytes,
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        })
    }

    async fn copy_in(&self, _: &TtrpcContext, request: CopyRequest) -> ttrpc::Result<CopyResponse> {
        self.copy(request, Direction::In).await
    }

    async fn copy_out(&self, _: &TtrpcContext, request: CopyRequest) -> ttrpc::Result<CopyResponse> {
        self.copy(request, Direction::Out).await
    }

    async fn kernel_log(
        &self,
        _: &TtrpcContext,
        request: KernelLogRequest,
    ) -> ttrpc::Result<KernelLogResponse> {
        let sandbox = self.0.clone();
        to_the_end(async move {
            let log = kernel_log::open(sandbox.guest())
                .inspect_err(|_| sandbox.unclaimed.forget([request.port, 0, 0]))?;
            if let Some(stream) = sandbox.unclaimed.claim(request.port).await? {
                tokio::spawn(kernel_log::follow(log, stream));
            }
            Ok(())
        })
        .await?;
        Ok(KernelLogResponse::new())
    }
}

impl Server {
    async fn copy(&self, request: CopyRequest, direction: Direction) -> ttrpc::Result<CopyResponse> {
        let sandbox = self.0.clone();
        to_the_end(async move {
            let asked = Asked {
                container_id: request.container_id,
                direction,
                path: request.path,
                name: request.name,
                port: request.port,
            };
            copies::copy(&sandbox, asked).await
        })
        .await?;
        Ok(CopyResponse::new())
    }
}
