//! A socket of rtnetlink(7): requests, and what the kernel answers.
//!
//! Owns the frame of messages and attributes (Linux `include/uapi/linux/netlink.h`). Must not know what the
//! messages mean.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Length of a message's header: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// Bytes that the kernel puts into one answer at most, where there is place for it.
const BUFFER_BYTES: usize = 32 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// All that there are of a kind.
pub(super) const DUMP: u16 = 0x300;
/// In place of one that there is.
pub(super) const REPLACE: u16 = 0x100;
/// Made when there is none.
pub(super) const CREATE: u16 = 0x400;

/// A connection to the kernel.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is number 0.
            None,
        )?;
        Ok(Netlink(socket))
    }

    /// Sends a request and returns the bodies of the answers, of whatever kind.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn request(&self, kind: u16, flags: u16, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        let acknowledge = if flags & DUMP == DUMP { 0 } else { NLM_F_ACK };
        let message = message(kind, flags | NLM_F_REQUEST | acknowledge, &body.0)?;
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        let mut bodies = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let (received, _) = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty())?;
            if take(&buffer[..received], &mut bodies)? {
                return Ok(bodies);
            }
        }
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // One request at a time: its number and the sender's are of no use.
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

/// Takes the messages of one answer; true when it was the last.
fn take(mut bytes: &[u8], bodies: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some((length, kind)) = number32(bytes, 0).zip(number16(bytes, 4)) {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let body = bytes
            .get(HEADER_BYTES..length)
            .ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let error = number32(body, 0).ok_or(io::ErrorKind::InvalidData)?.cast_signed();
                return match error {
                    0 => Ok(true),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            _ => bodies.push(body.to_vec()),
        }
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

/// The body of a message: a fixed part, then attributes.
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn new(fixed: Vec<u8>) -> Self {
        Body(fixed)
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // What is put into attributes here is far below their 64 KiB.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Adds an attribute where there is a value.
    pub(super) fn with_some(self, kind: u16, value: Option<Vec<u8>>) -> Self {
        match value {
            Some(value) => self.with(kind, &value),
            None => self,
        }
    }
}

/// The attributes of a body after its fixed part: kinds and values.
pub(super) fn attributes(body: &[u8], fixed: usize) -> Vec<(u16, &[u8])> {
    let mut rest = body.get(aligned(fixed)..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((length, kind)) = number16(rest, 0).zip(number16(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        found.push((kind, value));
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    found
}

/// The number at an offset.
pub(super) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put_in() {
        let body = Body::new(vec![9; 12])
            .with(1, b"abc")
            .with_some(2, None)
            .with(3, b"");
        assert_eq!(body.0.len(), 12 + 8 + 4);
        assert_eq!(attributes(&body.0, 12), [(1, &b"abc"[..]), (3, &b""[..])]);
    }

    #[test]
    fn answers_that_make_no_sense_end() {
        let mut bodies = Vec::new();
        let message = message(16, 0, b"body").expect("short");
        assert!(!take(&message, &mut bodies).expect("understood"));
        assert_eq!(bodies, [b"body"]);
        assert!(take(&message[..18], &mut bodies).is_err(), "cut short");
        assert!(
            take(&[1, 0, 0, 0, 9, 0], &mut bodies).is_err(),
            "shorter than its header"
        );
        assert_eq!(attributes(&[0; 8], 0), [], "an attribute of no length");
        assert_eq!(
            attributes(&[200, 0, 1, 0], 0),
            [],
            "one that is longer than the rest"
        );
    }

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let refused = message(NLMSG_ERROR, 0, &(-19_i32).to_ne_bytes()).expect("short");
        let error = take(&refused, &mut Vec::new()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(19));
    }
}
