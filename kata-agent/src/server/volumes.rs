//! Files and volumes of the guest, outside of containers.

use kata_agent_proto::agent::{
    CopyFileRequest, RemoveStaleVirtiofsShareMountsRequest, ResizeVolumeRequest,
    UpdateEphemeralMountsRequest, VolumeStatsRequest,
};
use kata_agent_proto::csi::VolumeStatsResponse;
use protobuf::well_known_types::empty::Empty;

use super::Server;
use crate::copy_file;
use crate::order::Call;
use crate::sandbox::Error;

impl Server {
    pub(super) async fn copy_file(&self, request: CopyFileRequest) -> ttrpc::Result<Empty> {
        copy_file::copy_file(&request).map_err(Error::from)?;
        Ok(Empty::new())
    }

    pub(super) async fn get_volume_stats(
        &self,
        request: VolumeStatsRequest,
    ) -> ttrpc::Result<VolumeStatsResponse> {
        self.by_worker(Call::GetVolumeStats, &request).await
    }

    pub(super) async fn resize_volume(&self, request: ResizeVolumeRequest) -> ttrpc::Result<Empty> {
        self.by_worker(Call::ResizeVolume, &request).await
    }

    pub(super) async fn update_ephemeral_mounts(
        &self,
        request: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.by_worker(Call::UpdateEphemeralMounts, &request).await
    }

    pub(super) async fn remove_stale_virtiofs_share_mounts(
        &self,
        request: RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.by_worker(Call::VisitShares, &request).await
    }
}
