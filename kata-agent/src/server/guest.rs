//! The guest: its clock, its entropy, what it can do.

use kata_agent_proto::agent::{
    GuestDetailsRequest, GuestDetailsResponse, ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use protobuf::well_known_types::empty::Empty;

use super::{Server, guest_failure};

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
}
