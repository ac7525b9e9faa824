//! Figures and events.

use kata_agent_proto::agent::{
    GetMetricsRequest, GetOOMEventRequest, Metrics, OOMEvent, StatsContainerRequest, StatsContainerResponse,
};

use super::{Server, guest_failure};
use crate::sandbox::Error;
use crate::{metrics, stats};

impl Server {
    pub(super) async fn stats_container(
        &self,
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

    pub(super) async fn get_oom_event(&self, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        let container_id = self.0.oom.next().await.ok_or(Error::Destroyed)?;
        Ok(OOMEvent {
            container_id,
            ..Default::default()
        })
    }

    pub(super) async fn get_metrics(&self, _: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        Ok(Metrics {
            metrics: metrics::text(),
            ..Default::default()
        })
    }
}
