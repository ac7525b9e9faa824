//! Brings a network interface up with an IPv4 address, by rtnetlink(7).
//!
//! Owns three messages of it. It must not know who is on the other end.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Length of the network's prefix, in bits.
const PREFIX: u8 = 24;

/// Message types and flags of linux/rtnetlink.h and linux/netlink.h.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const ANSWER: u16 = 2;
const REQUEST_WITH_ANSWER: u16 = 0x1 | 0x4;
const CREATE: u16 = 0x400 | 0x200;

/// `IFA_ADDRESS` and `IFA_LOCAL` of linux/if_addr.h.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;

/// `IFF_UP` (netdevice(7)).
const UP: u32 = 1;

/// Length of `struct nlmsghdr`, in bytes.
const HEADER_BYTES: u32 = 16;

/// Gives the interface this address in a network of 24 bits and brings it up.
///
/// # Errors
/// When there is no such interface, or what the kernel says.
pub fn bring_up(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let family = u8::try_from(AddressFamily::INET.as_raw()).map_err(io::Error::other)?;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 of this family is NETLINK_ROUTE.
        None,
    )?;
    let inet = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let index = rustix::net::netdevice::name_to_index(inet, interface)?;
    // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
    let mut body = vec![family, PREFIX, 0, 0];
    body.extend(index.to_ne_bytes());
    for kind in [LOCAL, ADDRESS] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    ask(&socket, NEW_ADDRESS, CREATE, &body)?;
    // struct ifinfomsg: family, padding, type, index, flags, which flags are meant.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    ask(&socket, NEW_LINK, 0, &body)
}

fn ask(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = HEADER_BYTES + u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_WITH_ANSWER | flags).to_ne_bytes());
    // A number of ours, and the kernel's address.
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::sendto(
        socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())?;
    verdict(&answer[..length])
}

/// The error number of a `struct nlmsgerr`; zero is success.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let (Some(kind), Some(error)) = (answer.get(4..6), answer.get(16..20)) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    if kind != ANSWER.to_ne_bytes() {
        return Err(io::Error::other("rtnetlink answered something else"));
    }
    let error = error.try_into().map(i32::from_ne_bytes).unwrap_or(i32::MIN);
    match error {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.wrapping_neg()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let error = bring_up("no-such-link", Ipv4Addr::new(10, 0, 0, 1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NODEV.raw_os_error()));
    }

    #[test]
    fn the_verdict_is_the_kernels() {
        let answer = |error: i32| {
            let mut bytes = vec![0; 20];
            bytes[4..6].copy_from_slice(&ANSWER.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            verdict(&bytes)
        };
        assert!(answer(0).is_ok());
        let denied = answer(-Errno::PERM.raw_os_error()).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        assert!(verdict(&[0; 8]).is_err());
    }
}
