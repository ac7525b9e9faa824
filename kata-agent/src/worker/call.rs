//! Requests of the API that a worker carries out as they came.
//!
//! Owns which function answers which, and how request and answer travel: standard input and standard output,
//! as protobuf. Must not know what the functions do.

use std::io::{self, Read, Write};

use kata_agent_proto::{Failed, FailureKind};
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;

use super::{container_failure, machine, network, tables, volumes};
use crate::order::Call;

/// Carries one out.
pub(super) fn carry_out(call: Call) -> Result<(), Failed> {
    match call {
        Call::ListInterfaces => answer(|_: Empty| network::list_interfaces()),
        Call::UpdateInterface => answer(network::update_interface),
        Call::ListRoutes => answer(|_: Empty| network::list_routes()),
        Call::UpdateRoutes => answer(network::update_routes),
        Call::AddNeighbors => answer(network::add_neighbors),
        Call::GetIpTables => answer(tables::get),
        Call::SetIpTables => answer(tables::set),
        Call::OnlineProcessorsAndMemory => answer(machine::online),
        Call::ProbeMemory => answer(machine::probe_memory),
        Call::AddSwap => answer(machine::add_swap),
        Call::LoadModules => answer(machine::load_modules),
        Call::UpdateEphemeralMounts => answer(volumes::update_ephemeral_mounts),
        Call::VisitShares => answer(|_: Empty| volumes::visit_shares()),
        Call::GetVolumeStats => answer(volumes::stats),
        Call::ResizeVolume => answer(volumes::resize),
    }
}

fn answer<Q: Message, A: Message>(work: impl FnOnce(Q) -> Result<A, Failed>) -> Result<(), Failed> {
    let mut request = Vec::new();
    io::stdin()
        .read_to_end(&mut request)
        .map_err(|error| container_failure(&error))?;
    let request = Q::parse_from_bytes(&request).map_err(|error| container_failure(&error))?;
    let answer = work(request)?;
    let answer = answer
        .write_to_bytes()
        .map_err(|error| Failed::new(FailureKind::Guest, error.to_string()))?;
    let mut output = io::stdout().lock();
    output
        .write_all(&answer)
        .and_then(|()| output.flush())
        .map_err(|error| container_failure(&error))
}
