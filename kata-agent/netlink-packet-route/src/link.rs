//! Network interfaces (rtnetlink(7), `struct ifinfomsg`).

use std::os::fd::RawFd;

use netlink_packet_core::DecodeError;

use crate::{AddressFamily, attribute};

/// Kinds of attributes (Linux `include/uapi/linux/if_link.h`).
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;

bitflags::bitflags! {
    /// State of an interface (netdevice(7)).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct LinkFlags: u32 {
        /// It is up.
        const Up = 1;
        const _ = !0;
    }
}

/// What every message about an interface says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkHeader {
    /// Whose addresses are asked for.
    pub interface_family: AddressFamily,
    /// Kind of device (`ARPHRD_*`).
    pub link_layer_type: u16,
    /// The kernel's number of the interface.
    pub index: u32,
    /// Its state.
    pub flags: LinkFlags,
    /// Which of the flags are to be changed.
    pub change_mask: LinkFlags,
}

/// An interface, or a question for one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkMessage {
    /// Number and state.
    pub header: LinkHeader,
    /// What else is known.
    pub attributes: Vec<LinkAttribute>,
}

/// What may be known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkAttribute {
    /// Its name.
    IfName(String),
    /// The network namespace that it is to be in.
    NetNsFd(RawFd),
}

impl LinkMessage {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = &self.header;
        let mut bytes = vec![header.interface_family.into(), 0];
        bytes.extend(header.link_layer_type.to_ne_bytes());
        for word in [header.index, header.flags.bits(), header.change_mask.bits()] {
            bytes.extend(word.to_ne_bytes());
        }
        for known in &self.attributes {
            match known {
                LinkAttribute::IfName(name) => {
                    attribute::write(&mut bytes, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
                }
                LinkAttribute::NetNsFd(fd) => attribute::write(&mut bytes, IFLA_NET_NS_FD, &fd.to_ne_bytes()),
            }
        }
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&[family, _, t0, t1, words @ ..], attributes) = bytes
            .split_first_chunk::<16>()
            .ok_or("an interface is cut short")?;
        let [i0, i1, i2, i3, f0, f1, f2, f3, c0, c1, c2, c3] = words;
        let mut message = Self {
            header: LinkHeader {
                interface_family: family.into(),
                link_layer_type: u16::from_ne_bytes([t0, t1]),
                index: u32::from_ne_bytes([i0, i1, i2, i3]),
                flags: LinkFlags::from_bits_retain(u32::from_ne_bytes([f0, f1, f2, f3])),
                change_mask: LinkFlags::from_bits_retain(u32::from_ne_bytes([c0, c1, c2, c3])),
            },
            attributes: Vec::new(),
        };
        for (kind, value) in attribute::read(attributes)? {
            match kind {
                IFLA_IFNAME => {
                    let name = value.strip_suffix(b"\0").unwrap_or(value);
                    let name = String::from_utf8_lossy(name).into_owned();
                    message.attributes.push(LinkAttribute::IfName(name));
                }
                IFLA_NET_NS_FD => {
                    let number = value.try_into().map_err(|_| "a descriptor has four bytes")?;
                    message
                        .attributes
                        .push(LinkAttribute::NetNsFd(RawFd::from_ne_bytes(number)));
                }
                _ => {}
            }
        }
        Ok(message)
    }
}
