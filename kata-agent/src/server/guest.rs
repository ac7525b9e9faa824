//! The guest: its clock, its entropy, what it can do.

use kata_agent_proto::agent::{
    AddSwapPathRequest, GuestDetailsRequest, GuestDetailsResponse, MemHotplugByProbeRequest,
    OnlineCPUMemRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use protobuf::well_known_types::empty::Empty;

use super::request::refuse;
use super::{Server, guest_failure};
use crate::guest::Guest;
use crate::order::Call;
use crate::worker::machine;

impl Server {
    pub(super) async fn reseed_random_dev(&self, request: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        self.0
            .guest()
            .reseed(&request.data)
            .map_err(|error| guest_failure("entropy", &error))?;
        Ok(Empty::new())
    }

    pub(super) async fn set_guest_date_time(&self, request: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        self.0
            .guest()
            .set_time(request.sec, request.usec)
            .map_err(|error| guest_failure("clock", &error))?;
        Ok(Empty::new())
    }

    pub(super) async fn get_guest_details(
        &self,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        Ok(self.0.guest().details(&request))
    }

    pub(super) async fn online_cpu_mem(&self, request: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        // Where nothing is offline and no number is asked for, there is nothing to refuse.
        let is_asked = request.nb_cpus > 0 || machine::has_offline();
        let hosts = self.0.guest() == Guest::Process && is_asked;
        refuse(hosts, "bringing the host's own processors and memory online")?;
        self.by_worker(Call::OnlineProcessorsAndMemory, &request).await
    }

    pub(super) async fn mem_hotplug_by_probe(
        &self,
        request: MemHotplugByProbeRequest,
    ) -> ttrpc::Result<Empty> {
        refuse(
            self.0.guest() == Guest::Process,
            "memory by probe: it would be the host's",
        )?;
        self.by_worker(Call::ProbeMemory, &request).await
    }

    pub(super) async fn add_swap_path(&self, request: AddSwapPathRequest) -> ttrpc::Result<Empty> {
        refuse(self.0.guest() == Guest::Process, "swap: it would be the host's")?;
        self.by_worker(Call::AddSwap, &request).await
    }
}
