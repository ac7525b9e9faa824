//! Interfaces, routes, neighbours and packet filters, each by a worker.

use kata_agent_proto::agent::{
    AddARPNeighborsRequest, GetIPTablesRequest, GetIPTablesResponse, Interfaces, ListInterfacesRequest,
    ListRoutesRequest, Routes, SetIPTablesRequest, SetIPTablesResponse, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use kata_agent_proto::types::Interface;
use protobuf::well_known_types::empty::Empty;

use super::Server;
use crate::order::Call;

impl Server {
    pub(super) async fn list_interfaces(&self, request: ListInterfacesRequest) -> ttrpc::Result<Interfaces> {
        self.by_worker(Call::ListInterfaces, &request).await
    }

    pub(super) async fn update_interface(&self, request: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        self.by_worker(Call::UpdateInterface, &request).await
    }

    pub(super) async fn list_routes(&self, request: ListRoutesRequest) -> ttrpc::Result<Routes> {
        self.by_worker(Call::ListRoutes, &request).await
    }

    pub(super) async fn update_routes(&self, request: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        self.by_worker(Call::UpdateRoutes, &request).await
    }

    pub(super) async fn add_arp_neighbors(&self, request: AddARPNeighborsRequest) -> ttrpc::Result<Empty> {
        self.by_worker(Call::AddNeighbors, &request).await
    }

    pub(super) async fn get_ip_tables(
        &self,
        request: GetIPTablesRequest,
    ) -> ttrpc::Result<GetIPTablesResponse> {
        self.by_worker(Call::GetIpTables, &request).await
    }

    pub(super) async fn set_ip_tables(
        &self,
        request: SetIPTablesRequest,
    ) -> ttrpc::Result<SetIPTablesResponse> {
        self.by_worker(Call::SetIpTables, &request).await
    }
}
