//! Interfaces, routes and neighbours of the guest, in the words of the API.
//!
//! Owns the translation between the API's text and rtnetlink's numbers (Linux
//! `include/uapi/linux/rtnetlink.h`, `if_link.h`, `if_addr.h`, `neighbour.h`). A request is understood as a whole
//! before anything is changed.

mod address;
mod interfaces;
mod netlink;
mod routes;

use std::io;

use kata_agent_proto::agent::{
    AddARPNeighborsRequest, Interfaces, Routes, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use kata_agent_proto::{Failed, FailureKind, types};
use protobuf::well_known_types::empty::Empty;

use self::interfaces::Link;
use self::netlink::{Body, CREATE, Netlink, REPLACE};
use super::guest_failure;

const RTM_NEWNEIGH: u16 = 28;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// A neighbour that stays until it is removed.
const NUD_PERMANENT: u16 = 0x80;

fn invalid(what: impl std::fmt::Display) -> Failed {
    Failed::new(FailureKind::Invalid, what.to_string())
}

fn refused(what: &str) -> impl Fn(io::Error) -> Failed + '_ {
    move |error| guest_failure(what, &error)
}

fn open() -> Result<Netlink, Failed> {
    Netlink::open().map_err(refused("netlink"))
}

/// Every interface with its addresses.
pub(super) fn list_interfaces() -> Result<Interfaces, Failed> {
    let netlink = open()?;
    let links = interfaces::links(&netlink).map_err(refused("interfaces"))?;
    let addresses = address::list(&netlink).map_err(refused("addresses"))?;
    Ok(Interfaces {
        interfaces: links.iter().map(|link| link.interface(&addresses)).collect(),
        ..Default::default()
    })
}

/// Gives one interface its name, size of packets, flags and exactly these addresses, and brings it up.
pub(super) fn update_interface(request: UpdateInterfaceRequest) -> Result<types::Interface, Failed> {
    let wanted = request.interface.into_option();
    let wanted = wanted.ok_or_else(|| invalid("an update without an interface"))?;
    interfaces::update(&open()?, &wanted)?;
    Ok(wanted)
}

/// The routes of the main table.
pub(super) fn list_routes() -> Result<Routes, Failed> {
    let netlink = open()?;
    let links = interfaces::links(&netlink).map_err(refused("interfaces"))?;
    let routes = routes::list(&netlink, &links).map_err(refused("routes"))?;
    Ok(Routes {
        routes,
        ..Default::default()
    })
}

/// Puts these routes in the place of all but the kernel's own, and returns what is there then.
pub(super) fn update_routes(request: UpdateRoutesRequest) -> Result<Routes, Failed> {
    let wanted = request.routes.into_option();
    let wanted = wanted.ok_or_else(|| invalid("an update without routes"))?;
    let netlink = open()?;
    let links = interfaces::links(&netlink).map_err(refused("interfaces"))?;
    routes::replace(&netlink, &links, &wanted.routes)?;
    list_routes()
}

/// Adds neighbours, in place of those that there are.
pub(super) fn add_neighbors(request: AddARPNeighborsRequest) -> Result<Empty, Failed> {
    let neighbors = request.neighbors.into_option();
    let neighbors = neighbors.ok_or_else(|| invalid("no neighbours"))?.arp_neighbors;
    let netlink = open()?;
    let links = interfaces::links(&netlink).map_err(refused("interfaces"))?;
    let messages = neighbors
        .iter()
        .map(|neighbor| neighbor_message(neighbor, &links));
    let messages: Vec<Body> = messages.collect::<Result<_, _>>()?;
    for (message, neighbor) in messages.iter().zip(&neighbors) {
        netlink
            .request(RTM_NEWNEIGH, CREATE | REPLACE, message)
            .map_err(refused(&format!("neighbour {}", neighbor.to_ip_address.address)))?;
    }
    Ok(Empty::new())
}

fn neighbor_message(neighbor: &types::ARPNeighbor, links: &[Link]) -> Result<Body, Failed> {
    let address = address::parse(&neighbor.to_ip_address.address)?;
    let link = interfaces::by_name(links, &neighbor.device)?;
    let state = match neighbor.state {
        0 => NUD_PERMANENT,
        state => u16::try_from(state).map_err(|_| invalid(format!("state {state}")))?,
    };
    let flags = u8::try_from(neighbor.flags).map_err(|_| invalid(format!("flags {}", neighbor.flags)))?;
    let hardware = (!neighbor.lladdr.is_empty())
        .then(|| address::parse_hardware(&neighbor.lladdr))
        .transpose()?;
    // A struct ndmsg: family, padding, index of the interface, state, flags, type.
    let mut fixed = vec![address::family(&address), 0, 0, 0];
    fixed.extend(link.index.to_ne_bytes());
    fixed.extend(state.to_ne_bytes());
    fixed.extend([flags, 0]);
    Ok(Body::new(fixed)
        .with(NDA_DST, &address::bytes(&address))
        .with_some(NDA_LLADDR, hardware))
}

#[cfg(test)]
mod tests;
