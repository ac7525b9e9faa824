//! Addresses as text and as bytes, and those that interfaces have.

use std::io;
use std::net::IpAddr;

use kata_agent_proto::{Failed, types};

use super::invalid;
use super::netlink::{Body, CREATE, DUMP, Netlink, REPLACE, attributes, number32};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Length of a struct ifaddrmsg: family, length of the prefix, flags, scope, index of the interface.
const IFADDRMSG_BYTES: usize = 8;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

/// An address without a prefix.
pub(super) fn parse(text: &str) -> Result<IpAddr, Failed> {
    text.parse().map_err(|_| invalid(format!("address {text:?}")))
}

/// The length of a prefix, in decimal.
pub(super) fn parse_prefix(text: &str, address: &IpAddr) -> Result<u8, Failed> {
    let most = bits(address);
    let prefix = text.parse().ok().filter(|prefix| *prefix <= most);
    prefix.ok_or_else(|| invalid(format!("prefix {text:?} of {address}")))
}

/// An address with the length of its prefix, or a whole address.
pub(super) fn parse_network(text: &str) -> Result<(IpAddr, u8), Failed> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address = parse(address)?;
    let prefix = prefix.map(|prefix| parse_prefix(prefix, &address)).transpose()?;
    Ok((address, prefix.unwrap_or_else(|| bits(&address))))
}

/// An address of hardware, as `02:00:00:00:00:01`.
pub(super) fn parse_hardware(text: &str) -> Result<Vec<u8>, Failed> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Result<Vec<u8>, _> = bytes.collect();
    bytes.map_err(|_| invalid(format!("hardware address {text:?}")))
}

/// The same as text.
pub(super) fn hardware_text(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The number of the address family.
pub(super) fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The family in the API's words.
pub(super) fn api_family(address: &IpAddr) -> types::IPFamily {
    if address.is_ipv4() {
        types::IPFamily::v4
    } else {
        types::IPFamily::v6
    }
}

/// In the order of the network.
pub(super) fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// From the order of the network.
pub(super) fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?));
    v4().or_else(v6)
}

/// The unspecified address of a family: the destination of a default route.
pub(super) fn unspecified(family: u8) -> IpAddr {
    if family == AF_INET {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    }
}

/// Every address of every interface.
pub(super) fn list(netlink: &Netlink) -> io::Result<Vec<Assigned>> {
    let bodies = netlink.request(RTM_GETADDR, DUMP, &Body::new(vec![0; IFADDRMSG_BYTES]))?;
    Ok(bodies.iter().filter_map(|body| read(body)).collect())
}

fn read(body: &[u8]) -> Option<Assigned> {
    let attributes = attributes(body, IFADDRMSG_BYTES);
    let find = |kind| attributes.iter().find(|(found, _)| *found == kind);
    // The address itself; IFA_ADDRESS is the other end's where there is one.
    let (_, address) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    Some(Assigned {
        index: number32(body, 4)?,
        address: from_bytes(address)?,
        prefix: *body.get(1)?,
    })
}

/// Gives an interface an address, or takes it away.
pub(super) fn assign(netlink: &Netlink, assigned: &Assigned, present: bool) -> io::Result<()> {
    let mut fixed = vec![family(&assigned.address), assigned.prefix, 0, 0];
    fixed.extend(assigned.index.to_ne_bytes());
    let address = bytes(&assigned.address);
    let body = Body::new(fixed)
        .with(IFA_LOCAL, &address)
        .with(IFA_ADDRESS, &address);
    let (kind, flags) = if present {
        (RTM_NEWADDR, CREATE | REPLACE)
    } else {
        (RTM_DELADDR, 0)
    };
    netlink.request(kind, flags, &body).map(drop)
}
