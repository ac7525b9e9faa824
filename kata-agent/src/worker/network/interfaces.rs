//! Network interfaces: finding, listing and changing them.

use std::io;

use kata_agent_proto::{Failed, FailureKind, types};

use super::address::{self, Assigned};
use super::netlink::{Body, DUMP, Netlink, attributes, number32};
use super::{invalid, refused};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
/// Length of a struct ifinfomsg: family, padding, type, index, flags, mask of changed flags.
const IFINFOMSG_BYTES: usize = 16;
/// Longest name of an interface (IFNAMSIZ without the final zero).
const NAME_MAX_BYTES: usize = 15;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    hardware: Vec<u8>,
    mtu: u32,
    flags: u32,
}

impl Link {
    /// In the API's words.
    pub(super) fn interface(&self, addresses: &[Assigned]) -> types::Interface {
        let own = addresses.iter().filter(|assigned| assigned.index == self.index);
        let ip_address = |assigned: &Assigned| types::IPAddress {
            family: address::api_family(&assigned.address).into(),
            address: assigned.address.to_string(),
            mask: assigned.prefix.to_string(),
            ..Default::default()
        };
        types::Interface {
            device: self.name.clone(),
            name: self.name.clone(),
            ip_addresses: own.map(ip_address).collect(),
            mtu: self.mtu.into(),
            hw_addr: address::hardware_text(&self.hardware),
            raw_flags: self.flags,
            ..Default::default()
        }
    }
}

/// Every interface.
pub(super) fn links(netlink: &Netlink) -> io::Result<Vec<Link>> {
    let bodies = netlink.request(RTM_GETLINK, DUMP, &Body::new(vec![0; IFINFOMSG_BYTES]))?;
    Ok(bodies.iter().filter_map(|body| read(body)).collect())
}

fn read(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: number32(body, 4)?,
        name: String::new(),
        hardware: Vec::new(),
        mtu: 0,
        flags: number32(body, 8)?,
    };
    for (kind, value) in attributes(body, IFINFOMSG_BYTES) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').into(),
            IFLA_ADDRESS => link.hardware = value.to_vec(),
            IFLA_MTU => link.mtu = number32(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

/// The interface of a name.
pub(super) fn by_name<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, Failed> {
    let found = links.iter().find(|link| link.name == name);
    found.ok_or_else(|| Failed::new(FailureKind::NoSuchInterface, name))
}

/// A network card is known by its address; without one it is known by its name.
fn find<'a>(links: &'a [Link], wanted: &types::Interface) -> Result<&'a Link, Failed> {
    if wanted.hw_addr.is_empty() {
        let name = if wanted.device.is_empty() {
            &wanted.name
        } else {
            &wanted.device
        };
        return by_name(links, name);
    }
    let hardware = address::parse_hardware(&wanted.hw_addr)?;
    let found = links.iter().find(|link| link.hardware == hardware);
    found.ok_or_else(|| Failed::new(FailureKind::NoSuchInterface, &wanted.hw_addr))
}

/// What an interface is to be.
struct Plan<'a> {
    link: &'a Link,
    /// None is the name that it has.
    name: Option<&'a str>,
    mtu: Option<u32>,
    flags: u32,
    addresses: Vec<Assigned>,
}

impl<'a> Plan<'a> {
    fn new(links: &'a [Link], wanted: &'a types::Interface) -> Result<Self, Failed> {
        let link = find(links, wanted)?;
        let name = wanted.name.as_str();
        if name.len() > NAME_MAX_BYTES || name.contains(['/', '\0']) || name.contains(char::is_whitespace) {
            return Err(invalid(format!("interface name {name:?}")));
        }
        let mtu = u32::try_from(wanted.mtu).map_err(|_| invalid(format!("mtu {}", wanted.mtu)))?;
        let assigned = |wanted: &types::IPAddress| {
            let address = address::parse(&wanted.address)?;
            Ok(Assigned {
                index: link.index,
                address,
                prefix: address::parse_prefix(&wanted.mask, &address)?,
            })
        };
        Ok(Plan {
            link,
            name: Some(name).filter(|name| !name.is_empty() && *name != link.name),
            mtu: Some(mtu).filter(|mtu| *mtu != 0),
            flags: IFF_UP | wanted.raw_flags & IFF_NOARP,
            addresses: wanted
                .ip_addresses
                .iter()
                .map(assigned)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// See [`super::update_interface`].
pub(super) fn update(netlink: &Netlink, wanted: &types::Interface) -> Result<(), Failed> {
    let links = links(netlink).map_err(refused("interfaces"))?;
    let plan = Plan::new(&links, wanted)?;
    if let Some(name) = plan.name {
        rename(netlink, &links, plan.link, name).map_err(refused(&format!("name {name}")))?;
    }
    let about = |what: &str| format!("{what} of {}", plan.name.unwrap_or(&plan.link.name));
    let present = address::list(netlink).map_err(refused(&about("addresses")))?;
    let own = present
        .iter()
        .filter(|assigned| assigned.index == plan.link.index);
    for old in own.clone().filter(|old| !plan.addresses.contains(old)) {
        address::assign(netlink, old, false).map_err(refused(&about(&format!("address {}", old.address))))?;
    }
    let mtu = plan.mtu.map(|mtu| mtu.to_ne_bytes().to_vec());
    set(netlink, plan.link.index, plan.flags, IFF_UP | IFF_NOARP, |body| {
        body.with_some(IFLA_MTU, mtu)
    })
    .map_err(refused(&about("mtu and flags")))?;
    for new in plan
        .addresses
        .iter()
        .filter(|new| !own.clone().any(|old| old == *new))
    {
        address::assign(netlink, new, true).map_err(refused(&about(&format!("address {}", new.address))))?;
    }
    Ok(())
}

/// Changes flags of an interface, and what else the body says.
fn set(
    netlink: &Netlink,
    index: u32,
    flags: u32,
    changed: u32,
    what: impl FnOnce(Body) -> Body,
) -> io::Result<()> {
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(changed.to_ne_bytes());
    netlink.request(RTM_NEWLINK, 0, &what(Body::new(fixed))).map(drop)
}

/// Renames an interface. One that has the name already gets ours.
fn rename(netlink: &Netlink, links: &[Link], link: &Link, name: &str) -> io::Result<()> {
    let other = links.iter().find(|other| other.name == name);
    if let Some(other) = other {
        give_name(netlink, other.index, &format!("kata{}", other.index))?;
    }
    give_name(netlink, link.index, name)?;
    if let Some(other) = other {
        give_name(netlink, other.index, &link.name)?;
        set(netlink, other.index, other.flags & IFF_UP, IFF_UP, |body| body)?;
    }
    Ok(())
}

/// Renames one interface. Kernels before 6.2 rename only what is down, which costs it routes and addresses.
fn give_name(netlink: &Netlink, index: u32, name: &str) -> io::Result<()> {
    let named = || {
        let name = [name.as_bytes(), b"\0"].concat();
        set(netlink, index, 0, 0, |body| body.with(IFLA_IFNAME, &name))
    };
    match named() {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            set(netlink, index, 0, IFF_UP, |body| body)?;
            named()
        }
        other => other,
    }
}
