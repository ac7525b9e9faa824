//! The sandbox itself: setting it up and ending it.

use kata_agent_proto::agent::{CreateSandboxRequest, DestroySandboxRequest};
use protobuf::well_known_types::empty::Empty;

use super::request::{refuse, storages};
use super::{Server, to_the_end};

impl Server {
    pub(super) async fn create_sandbox(&self, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
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

    pub(super) async fn destroy_sandbox(&self, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.0.clone();
        to_the_end(async move {
            sandbox.destroy().await;
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }
}
