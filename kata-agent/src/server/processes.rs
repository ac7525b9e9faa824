//! Processes of containers: further ones, signals and ends.

use std::sync::Arc;

use kata_agent_proto::agent::{
    ExecProcessRequest, SignalProcessRequest, WaitProcessRequest, WaitProcessResponse,
};
use kata_agent_proto::{Failed, FailureKind};
use protobuf::well_known_types::empty::Empty;

use super::request::{execution, signal_number};
use super::{Server, to_the_end};
use crate::process::Process;
use crate::sandbox::Error;

impl Server {
    pub(super) fn process(&self, container_id: &str, exec_id: &str) -> Result<Arc<Process>, Error> {
        let process = self.0.container(container_id)?.process(exec_id);
        process.ok_or_else(|| Error::NotFound(format!("{container_id}/{exec_id}")))
    }

    fn send_signal(&self, request: &SignalProcessRequest) -> Result<(), Error> {
        if self.0.roster.is_coming(&request.container_id, &request.exec_id) {
            return self.signal_unmade(&request.container_id, signal_number(request.signal)?);
        }
        let container = self.0.container(&request.container_id)?;
        let signal = signal_number(request.signal)?;
        if request.exec_id.is_empty() {
            return Ok(container.signal_all(signal)?);
        }
        let process = self.process(&request.container_id, &request.exec_id)?;
        Ok(container.signal(&process, signal)?)
    }

    /// Before the start only SIGKILL has a meaning.
    fn signal_unmade(&self, container_id: &str, signal: i32) -> Result<(), Error> {
        if signal != libc::SIGKILL {
            let text = format!("{container_id} is not started");
            return Err(Failed::new(FailureKind::NotRunning, text).into());
        }
        // Its maker hears of it; nobody waits here.
        drop(self.0.roster.give_up(container_id));
        Ok(())
    }

    pub(super) async fn exec_process(&self, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
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

    pub(super) async fn signal_process(&self, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.send_signal(&request)?;
        Ok(Empty::new())
    }

    pub(super) async fn wait_process(
        &self,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let status = process.wait().await.ok_or(Error::NotFound(request.exec_id))?;
        Ok(WaitProcessResponse {
            status,
            ..Default::default()
        })
    }
}
