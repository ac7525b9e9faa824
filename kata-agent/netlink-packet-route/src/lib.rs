//! Network interfaces and their addresses as messages of the kernel's rtnetlink, by the names that libcontainer
//! knows from the large package of this name.
//!
//! Owns the two kinds of messages that libcontainer sends and reads when it moves a network device into a
//! container (OCI runtime-spec config-linux.md#network-devices). Must not know sockets.
//! What another kind of message or attribute says is not kept.

mod attribute;

pub mod address;
pub mod link;

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

use address::AddressMessage;
use link::LinkMessage;

/// Numbers of messages (Linux `include/uapi/linux/rtnetlink.h`).
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

/// Whose addresses (Linux `include/linux/socket.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressFamily {
    /// Any.
    #[default]
    Unspec,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
    /// Another, by its number.
    Other(u8),
}

impl From<u8> for AddressFamily {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::Unspec,
            2 => Self::Inet,
            10 => Self::Inet6,
            other => Self::Other(other),
        }
    }
}

impl From<AddressFamily> for u8 {
    fn from(family: AddressFamily) -> Self {
        match family {
            AddressFamily::Unspec => 0,
            AddressFamily::Inet => 2,
            AddressFamily::Inet6 => 10,
            AddressFamily::Other(number) => number,
        }
    }
}

/// A message of rtnetlink(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteNetlinkMessage {
    /// An interface that there is.
    NewLink(LinkMessage),
    /// Asks for an interface.
    GetLink(LinkMessage),
    /// Changes an interface.
    SetLink(LinkMessage),
    /// An address that there is, or is to be.
    NewAddress(AddressMessage),
    /// Asks for addresses.
    GetAddress(AddressMessage),
}

impl RouteNetlinkMessage {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::NewLink(link) | Self::GetLink(link) | Self::SetLink(link) => link.bytes(),
            Self::NewAddress(address) | Self::GetAddress(address) => address.bytes(),
        }
    }
}

impl NetlinkSerializable for RouteNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewLink(_) => RTM_NEWLINK,
            Self::GetLink(_) => RTM_GETLINK,
            Self::SetLink(_) => RTM_SETLINK,
            Self::NewAddress(_) => RTM_NEWADDR,
            Self::GetAddress(_) => RTM_GETADDR,
        }
    }

    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = self.bytes();
        buffer[..bytes.len()].copy_from_slice(&bytes);
    }
}

impl From<RouteNetlinkMessage> for NetlinkPayload<RouteNetlinkMessage> {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkDeserializable for RouteNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            RTM_NEWLINK => LinkMessage::parse(payload).map(Self::NewLink),
            RTM_GETLINK => LinkMessage::parse(payload).map(Self::GetLink),
            RTM_SETLINK => LinkMessage::parse(payload).map(Self::SetLink),
            RTM_NEWADDR => AddressMessage::parse(payload).map(Self::NewAddress),
            RTM_GETADDR => AddressMessage::parse(payload).map(Self::GetAddress),
            other => Err(format!(
                "a message of type {other}, which has nothing to do with links or addresses"
            )
            .into()),
        }
    }
}

#[cfg(test)]
mod tests;
