//! Stands between QEMU's network card and the backend, and holds back what is said too early.
//!
//! QEMU enables a card's queues when it makes the card, and at every change of the driver's, but not between
//! its agreement on features and the start of the queues (QEMU 7.2 `hw/net/virtio-net.c`, `peer_attach`;
//! `hw/net/vhost_net.c`, `vhost_net_start`). The protocol has that only after `VHOST_USER_F_PROTOCOL_FEATURES`
//! was agreed on, and the framework takes it for the end of the connection. So what was said before that is
//! answered here, and said to the backend as soon as it may be.
//!
//! ```text
//!   QEMU ── SET_VRING_ENABLE before SET_FEATURES ──► answered if an answer is asked for, and kept
//!        ── SET_FEATURES ──────────────────────────► backend, and what was kept behind it
//!        ── everything else, with its descriptors ─► backend
//!        ◄─────────────────── replies ────────────── backend
//! ```
//!
//! Owns a thread and both sockets; ends when either side does. Knows two messages, and no device.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Bytes of a message's header: request, flags, size of what follows (QEMU docs/interop/vhost-user.rst).
const HEADER_BYTES: usize = 12;

/// More than any message has behind its header.
const PAYLOAD_MAX: usize = 4096;

/// Descriptors of a message, at most (`VHOST_USER_MAX_RAM_SLOTS` and some).
const DESCRIPTORS_MAX: usize = 32;

/// Queues that a device can have.
const QUEUES_MAX: usize = 64;

const SET_FEATURES: u32 = 2;
const SET_VRING_ENABLE: u32 = 18;
const NEED_REPLY: u32 = 8;
/// Version 1, and that it is a reply.
const REPLY: u32 = 1 | 4;

/// Starts the thread.
///
/// # Errors
/// When there can be no thread.
pub(super) fn start(frontend: OwnedFd, backend: OwnedFd) -> io::Result<()> {
    let relay = Relay {
        frontend,
        backend,
        agreed: false,
        early: BTreeMap::new(),
    };
    let thread = std::thread::Builder::new().name("vhost-user-relay".to_owned());
    thread.spawn(move || relay.run()).map(drop)
}

struct Relay {
    frontend: OwnedFd,
    backend: OwnedFd,
    /// Features have been agreed on.
    agreed: bool,
    /// What was said of queues before that: the last of each, by its number.
    early: BTreeMap<u32, Vec<u8>>,
}

/// A message on its way.
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    fn word(&self, at: usize) -> u32 {
        let word = self.bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes)
    }
}

impl Relay {
    /// Dropping both sockets tells the other side.
    fn run(mut self) {
        match self.pass_all() {
            Ok(()) => {}
            Err(cause) => log::debug!("vhost-user: the relay ends: {cause}"),
        }
    }

    fn pass_all(&mut self) -> io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(&self.frontend, PollFlags::IN),
                PollFd::new(&self.backend, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
            let [heard, answered] = fds.map(|fd| !fd.revents().is_empty());
            if answered && !self.pass_reply()? {
                return Ok(());
            }
            if heard && !self.pass_message()? {
                return Ok(());
            }
        }
    }

    /// Returns whether there was one.
    fn pass_reply(&self) -> io::Result<bool> {
        let mut bytes = [0; PAYLOAD_MAX];
        let (count, _) = rustix::net::recv(&self.backend, &mut bytes[..], RecvFlags::empty())?;
        send(&self.frontend, &bytes[..count], &[])?;
        Ok(count > 0)
    }

    /// Returns whether there was one.
    fn pass_message(&mut self) -> io::Result<bool> {
        let Some(message) = receive(&self.frontend)? else {
            return Ok(false);
        };
        if message.word(0) == SET_VRING_ENABLE && !self.agreed {
            self.keep(&message)?;
            return Ok(true);
        }
        send(&self.backend, &message.bytes, &message.descriptors)?;
        if message.word(0) == SET_FEATURES {
            self.agreed = true;
            for (_, bytes) in std::mem::take(&mut self.early) {
                send(&self.backend, &bytes, &[])?;
            }
        }
        Ok(true)
    }

    /// Answers for the backend, and keeps the message without the wish for an answer.
    fn keep(&mut self, message: &Message) -> io::Result<()> {
        if message.word(4) & NEED_REPLY != 0 {
            let words = [SET_VRING_ENABLE, REPLY, 8, 0, 0];
            let reply: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            send(&self.frontend, &reply, &[])?;
        }
        let index = message.word(HEADER_BYTES);
        if usize::try_from(index).is_ok_and(|index| index < QUEUES_MAX) {
            let words = [SET_VRING_ENABLE, 1, 8, index, message.word(HEADER_BYTES + 4)];
            self.early
                .insert(index, words.into_iter().flat_map(u32::to_le_bytes).collect());
        }
        Ok(())
    }
}

/// The next message; `None` at the end.
fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut message = Message {
        bytes: vec![0; HEADER_BYTES],
        descriptors: Vec::new(),
    };
    if !fill(socket, &mut message, 0)? {
        return Ok(None);
    }
    let size = usize::try_from(message.word(8)).unwrap_or(usize::MAX);
    if size > PAYLOAD_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.bytes.resize(HEADER_BYTES + size, 0);
    Ok(fill(socket, &mut message, HEADER_BYTES)?.then_some(message))
}

/// Reads all bytes from `at` on, with the descriptors beside them; returns whether they came.
fn fill(socket: &OwnedFd, message: &mut Message, mut at: usize) -> io::Result<bool> {
    while at < message.bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut message.bytes[at..])];
        let received = match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(cause) => return Err(cause.into()),
        };
        for beside in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = beside {
                message.descriptors.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        at += received.bytes;
    }
    Ok(true)
}

/// Sends all bytes, the descriptors with the first.
fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let parts = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn message(request: u32, flags: u32) -> Vec<u8> {
        let words = [request, 1 | flags, 8, 7, 0];
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn relayed() -> (UnixStream, UnixStream) {
        let (qemu, frontend) = UnixStream::pair().unwrap();
        let (served, backend) = UnixStream::pair().unwrap();
        start(frontend.into(), backend.into()).unwrap();
        for end in [&qemu, &served] {
            let deadline = std::time::Duration::from_secs(20);
            end.set_read_timeout(Some(deadline)).unwrap();
        }
        (qemu, served)
    }

    #[test]
    fn what_is_said_too_early_is_answered_and_said_again_in_time() {
        let (mut qemu, mut served) = relayed();
        let early = message(SET_VRING_ENABLE, NEED_REPLY);
        qemu.write_all(&early).unwrap();
        let mut reply = [0xff; 20];
        qemu.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], early[..4]);
        assert_eq!((reply[4], &reply[12..]), (5, &[0; 8][..]), "a reply of success");
        let late = message(SET_VRING_ENABLE, NEED_REPLY);
        qemu.write_all(&message(SET_FEATURES, 0)).unwrap();
        qemu.write_all(&late).unwrap();
        for expected in [message(SET_FEATURES, 0), message(SET_VRING_ENABLE, 0), late] {
            let mut got = [0; 20];
            served.read_exact(&mut got).unwrap();
            assert_eq!(got, expected[..]);
        }
        served.write_all(b"reply").unwrap();
        let mut got = [0; 5];
        qemu.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"reply");
    }

    #[test]
    fn descriptors_go_along() {
        let (qemu, served) = relayed();
        let (kick, _other) = UnixStream::pair().unwrap();
        send(&qemu.into(), &message(12, 0), &[kick.into()]).unwrap();
        let got = receive(&served.into()).unwrap().unwrap();
        assert_eq!((got.word(0), got.descriptors.len()), (12, 1));
    }

    #[test]
    fn the_end_of_either_side_is_the_others() {
        let (qemu, mut served) = relayed();
        drop(qemu);
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        let (mut qemu, served) = relayed();
        drop(served);
        assert_eq!(qemu.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_message_that_is_too_long_ends_it() {
        let (mut qemu, mut served) = relayed();
        let words = [1, 1, 1 << 20];
        let header: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        qemu.write_all(&header).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
    }
}
