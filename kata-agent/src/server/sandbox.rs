//! The sandbox itself: setting it up and ending it.

use kata_agent_proto::agent::{CreateSandboxRequest, DestroySandboxRequest};
use protobuf::well_known_types::empty::Empty;

use super::request::{refuse, storages};
use super::{Server, to_the_end};
use crate::guest::Guest;
use crate::order::Call;
use crate::sandbox::Error;
use crate::worker::machine;

impl Server {
    pub(super) async fn create_sandbox(&self, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.load_modules(&request).await?;
        refuse(!request.guest_hook_path.is_empty(), "hooks of the guest")?;
        let sandbox = self.0.clone();
        to_the_end(async move {
            let CreateSandboxRequest {
                sandbox_id,
                hostname,
                dns,
                storages: list,
                sandbox_pidns,
                ..
            } = request;
            let storages = storages(list)?;
            sandbox
                .set_up(sandbox_id, hostname, dns, storages, sandbox_pidns)
                .await
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

    async fn load_modules(&self, request: &CreateSandboxRequest) -> ttrpc::Result<()> {
        let modules = &request.kernel_modules;
        for module in modules {
            machine::check_module_name(&module.name).map_err(Error::from)?;
        }
        let missing = modules.iter().find(|module| !machine::has_module(&module.name));
        let Some(missing) = missing else { return Ok(()) };
        let what = format!("kernel module {}: it would be the host's", missing.name);
        refuse(self.0.guest() == Guest::Process, &what)?;
        let modules = CreateSandboxRequest {
            kernel_modules: modules.clone(),
            ..Default::default()
        };
        self.by_worker(Call::LoadModules, &modules)
            .await
            .map(|_: Empty| ())
    }
}
