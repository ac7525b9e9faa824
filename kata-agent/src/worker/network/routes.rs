//! Routes of the main table: listing and replacing them.

use std::io;
use std::net::IpAddr;

use kata_agent_proto::{Failed, types};

use super::address;
use super::interfaces::{self, Link};
use super::netlink::{Body, CREATE, DUMP, Netlink, REPLACE, attributes, number32};
use super::{invalid, refused};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
/// Length of a struct rtmsg: family, lengths of destination and source, type of service, table, protocol, scope,
/// type, flags.
const RTMSG_BYTES: usize = 12;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// One route, as the kernel has it or as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    destination: (IpAddr, u8),
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    index: Option<u32>,
    priority: Option<u32>,
    protocol: u8,
    scope: u8,
    flags: u32,
}

impl Route {
    fn read(body: &[u8]) -> Option<Self> {
        let [family, length, _, _, table, protocol, scope, kind] = *body.first_chunk()?;
        if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
            return None;
        }
        let mut route = Route {
            destination: (address::unspecified(family), length),
            gateway: None,
            source: None,
            index: None,
            priority: None,
            protocol,
            scope,
            flags: number32(body, 8)?,
        };
        for (kind, value) in attributes(body, RTMSG_BYTES) {
            match kind {
                RTA_DST => route.destination.0 = address::from_bytes(value)?,
                RTA_GATEWAY => route.gateway = address::from_bytes(value),
                RTA_PREFSRC => route.source = address::from_bytes(value),
                RTA_OIF => route.index = number32(value, 0),
                RTA_PRIORITY => route.priority = number32(value, 0),
                _ => {}
            }
        }
        Some(route)
    }

    fn wanted(wanted: &types::Route, links: &[Link]) -> Result<Self, Failed> {
        let optional = |text: &str| (!text.is_empty()).then(|| address::parse(text)).transpose();
        let gateway = optional(&wanted.gateway)?;
        let destination = match wanted.dest.as_str() {
            "" | "default" => {
                let v6 = wanted.family.enum_value() == Ok(types::IPFamily::v6);
                let v6 = gateway.map_or(v6, |gateway| gateway.is_ipv6());
                let any = if v6 {
                    IpAddr::from([0; 16])
                } else {
                    IpAddr::from([0; 4])
                };
                (any, 0)
            }
            text => address::parse_network(text)?,
        };
        let source = optional(&wanted.source)?;
        let others = [gateway, source];
        if others
            .iter()
            .flatten()
            .any(|other| other.is_ipv4() != destination.0.is_ipv4())
        {
            return Err(invalid(format!("route {:?} mixes address families", wanted.dest)));
        }
        let index = match wanted.device.as_str() {
            "" => None,
            name => Some(interfaces::by_name(links, name)?.index),
        };
        Ok(Route {
            destination,
            gateway,
            source,
            index,
            priority: None,
            protocol: RTPROT_STATIC,
            scope: u8::try_from(wanted.scope).map_err(|_| invalid(format!("scope {}", wanted.scope)))?,
            flags: wanted.flags,
        })
    }

    fn body(&self) -> Body {
        let (destination, length) = self.destination;
        let mut fixed = vec![
            address::family(&destination),
            length,
            0,
            0,
            RT_TABLE_MAIN,
            self.protocol,
            self.scope,
            RTN_UNICAST,
        ];
        fixed.extend(self.flags.to_ne_bytes());
        let number = |number: Option<u32>| number.map(|number| number.to_ne_bytes().to_vec());
        let bytes = |address: Option<IpAddr>| address.map(|address| address::bytes(&address));
        Body::new(fixed)
            .with_some(RTA_DST, (length > 0).then(|| address::bytes(&destination)))
            .with_some(RTA_GATEWAY, bytes(self.gateway))
            .with_some(RTA_PREFSRC, bytes(self.source))
            .with_some(RTA_OIF, number(self.index))
            .with_some(RTA_PRIORITY, number(self.priority))
    }

    fn api(&self, links: &[Link]) -> types::Route {
        let (destination, length) = self.destination;
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let link = links.iter().find(|link| Some(link.index) == self.index);
        types::Route {
            // The default route has no destination, as Kata has it.
            dest: if length == 0 {
                String::new()
            } else {
                format!("{destination}/{length}")
            },
            gateway: text(self.gateway),
            device: link.map(|link| link.name.clone()).unwrap_or_default(),
            source: text(self.source),
            scope: self.scope.into(),
            family: address::api_family(&destination).into(),
            flags: self.flags,
            ..Default::default()
        }
    }
}

fn read_all(netlink: &Netlink) -> io::Result<Vec<Route>> {
    let bodies = netlink.request(RTM_GETROUTE, DUMP, &Body::new(vec![0; RTMSG_BYTES]))?;
    Ok(bodies.iter().filter_map(|body| Route::read(body)).collect())
}

/// See [`super::list_routes`].
pub(super) fn list(netlink: &Netlink, links: &[Link]) -> io::Result<Vec<types::Route>> {
    let routes = read_all(netlink)?;
    Ok(routes.iter().map(|route| route.api(links)).collect())
}

/// See [`super::update_routes`].
pub(super) fn replace(netlink: &Netlink, links: &[Link], wanted: &[types::Route]) -> Result<(), Failed> {
    let routes = wanted.iter().map(|wanted| Route::wanted(wanted, links));
    let mut routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
    // A gateway is reached by a route that has none.
    routes.sort_by_key(|route| route.gateway.is_some());
    let present = read_all(netlink).map_err(refused("routes"))?;
    for old in present.iter().filter(|old| old.protocol != RTPROT_KERNEL) {
        netlink
            .request(RTM_DELROUTE, 0, &old.body())
            .map_err(refused(&format!("removing the route to {}", old.destination.0)))?;
    }
    for new in &routes {
        netlink
            .request(RTM_NEWROUTE, CREATE | REPLACE, &new.body())
            .map_err(refused(&format!(
                "route to {}/{}",
                new.destination.0, new.destination.1
            )))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_back_as_it_was_written() {
        let wanted = |dest: &str, gateway: &str| types::Route {
            dest: dest.into(),
            gateway: gateway.into(),
            ..Default::default()
        };
        for (dest, gateway, shown) in [
            ("10.0.0.0/8", "", "10.0.0.0/8"),
            ("default", "10.0.0.1", ""),
            ("0.0.0.0/0", "10.0.0.1", ""),
            ("", "fd00::1", ""),
            ("fd00::/64", "fd00::1", "fd00::/64"),
            ("192.0.2.1", "", "192.0.2.1/32"),
        ] {
            let route = Route::wanted(&wanted(dest, gateway), &[]).expect(dest);
            let again = route.api(&[]);
            assert_eq!((again.dest.as_str(), again.gateway.as_str()), (shown, gateway));
        }
        for (dest, gateway) in [
            ("10.0.0.0/33", ""),
            ("nowhere", ""),
            ("10.0.0.0/8", "fd00::1"),
            ("10.0.0.0/8", "here"),
        ] {
            assert!(
                Route::wanted(&wanted(dest, gateway), &[]).is_err(),
                "{dest} {gateway}"
            );
        }
    }
}
