//! Addresses of interfaces (rtnetlink(7), `struct ifaddrmsg`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;

use crate::{AddressFamily, attribute};

/// Kinds of attributes (Linux `include/uapi/linux/if_addr.h`).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_MULTICAST: u16 = 7;

bitflags::bitflags! {
    /// State of an address (Linux `include/uapi/linux/if_addr.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AddressHeaderFlags: u8 {
        /// Somebody set it, and it does not run out.
        const Permanent = 0x80;
        const _ = !0;
    }
}

/// How far an address is valid (Linux `include/uapi/linux/rtnetlink.h`, `rt_scope_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AddressScope {
    /// Everywhere.
    #[default]
    Universe,
    /// On this link, this host, nowhere, or as its user defined, by its number.
    Other(u8),
}

/// What every message about an address says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressHeader {
    /// Its family.
    pub family: AddressFamily,
    /// Length of its network's prefix in bits.
    pub prefix_len: u8,
    /// Its state.
    pub flags: AddressHeaderFlags,
    /// How far it is valid.
    pub scope: AddressScope,
    /// The kernel's number of its interface.
    pub index: u32,
}

/// An address, or a question for some.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressMessage {
    /// Network and interface.
    pub header: AddressHeader,
    /// The address itself.
    pub attributes: Vec<AddressAttribute>,
}

/// What may be known of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressAttribute {
    /// The interface's own, or its peer's where there is one.
    Address(IpAddr),
    /// The interface's own.
    Local(IpAddr),
    /// Its network's for everybody.
    Broadcast(Ipv4Addr),
    /// One of many listeners.
    Multicast(Ipv6Addr),
}

impl AddressAttribute {
    fn write(&self, bytes: &mut Vec<u8>) {
        let mut ip = |kind, address: &IpAddr| match address {
            IpAddr::V4(address) => attribute::write(bytes, kind, &address.octets()),
            IpAddr::V6(address) => attribute::write(bytes, kind, &address.octets()),
        };
        match self {
            Self::Address(address) => ip(IFA_ADDRESS, address),
            Self::Local(address) => ip(IFA_LOCAL, address),
            Self::Broadcast(address) => ip(IFA_BROADCAST, &IpAddr::V4(*address)),
            Self::Multicast(address) => ip(IFA_MULTICAST, &IpAddr::V6(*address)),
        }
    }

    fn parse(kind: u16, value: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match (kind, ip(value)) {
            (IFA_ADDRESS, Some(address)) => Self::Address(address),
            (IFA_LOCAL, Some(address)) => Self::Local(address),
            (IFA_BROADCAST, Some(IpAddr::V4(address))) => Self::Broadcast(address),
            (IFA_MULTICAST, Some(IpAddr::V6(address))) => Self::Multicast(address),
            (IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST | IFA_MULTICAST, _) => {
                return Err(format!("an address has {} bytes", value.len()).into());
            }
            _ => return Ok(None),
        }))
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

impl AddressMessage {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = &self.header;
        let scope = match header.scope {
            AddressScope::Universe => 0,
            AddressScope::Other(number) => number,
        };
        let mut bytes = vec![
            header.family.into(),
            header.prefix_len,
            header.flags.bits(),
            scope,
        ];
        bytes.extend(header.index.to_ne_bytes());
        for known in &self.attributes {
            known.write(&mut bytes);
        }
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&[family, prefix_len, flags, scope, index @ ..], attributes) =
            bytes.split_first_chunk::<8>().ok_or("an address is cut short")?;
        let attributes = attribute::read(attributes)?
            .into_iter()
            .filter_map(|(kind, value)| AddressAttribute::parse(kind, value).transpose())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            header: AddressHeader {
                family: family.into(),
                prefix_len,
                flags: AddressHeaderFlags::from_bits_retain(flags),
                scope: if scope == 0 {
                    AddressScope::Universe
                } else {
                    AddressScope::Other(scope)
                },
                index: u32::from_ne_bytes(index),
            },
            attributes,
        })
    }
}
