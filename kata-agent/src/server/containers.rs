//! Containers: making, starting, changing and removing them.

use std::time::Duration;

use kata_agent_proto::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    StartContainerRequest, UpdateContainerRequest,
};
use protobuf::well_known_types::empty::Empty;

use super::request::{creation, limits};
use super::{Server, to_the_end};

impl Server {
    pub(super) async fn create_container(&self, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
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

    pub(super) async fn start_container(&self, request: StartContainerRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.0.clone();
        to_the_end(async move { sandbox.start(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    pub(super) async fn remove_container(&self, request: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
        let sandbox = self.0.clone();
        to_the_end(async move { sandbox.remove(&request.container_id, timeout).await }).await?;
        Ok(Empty::new())
    }

    pub(super) async fn update_container(&self, request: UpdateContainerRequest) -> ttrpc::Result<Empty> {
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

    pub(super) async fn pause_container(&self, request: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.0.container(&request.container_id)?.pause().await?;
        Ok(Empty::new())
    }

    pub(super) async fn resume_container(&self, request: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.0.container(&request.container_id)?.resume().await?;
        Ok(Empty::new())
    }
}
