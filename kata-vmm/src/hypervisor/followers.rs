//! Those who follow a byte stream as it comes.
//!
//! Each has a `SOCK_SEQPACKET` socket and gets messages of a position in the stream (`u64`, little endian) and the
//! bytes from there. What a follower does not take in time is kept for it as long as the tail keeps it; then it is
//! gone, which the next position shows. Nobody waits for a follower. Owns that format; it must not know who writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};

/// Bytes of the stream in one message.
const MESSAGE_BYTES: usize = 8 << 10;

/// Events taken in at once; more come with the next turn.
const EVENTS: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Followers {
    list: Vec<Follower>,
    /// Readable when a follower that lagged takes more, or has left.
    events: Option<OwnedFd>,
    next: u64,
}

#[derive(Debug)]
struct Follower {
    number: u64,
    socket: OwnedFd,
    /// What it gets next.
    position: u64,
    lags: bool,
}

/// The end of a stream: what is kept of it, and how long it is in all.
pub(super) struct Kept<'a> {
    pub(super) bytes: &'a VecDeque<u8>,
    pub(super) total: u64,
}

impl Kept<'_> {
    fn start(&self) -> u64 {
        self.total.saturating_sub(self.bytes.len() as u64)
    }
}

impl Followers {
    /// Adds one, which gets what is kept and everything after it.
    pub(super) fn add(&mut self, socket: OwnedFd, kept: &Kept<'_>) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let events = match self.events.take() {
            Some(events) => events,
            None => epoll::create(CreateFlags::CLOEXEC)?,
        };
        let number = self.next;
        let added = epoll::add(&events, &socket, EventData::new_u64(number), EventFlags::empty());
        self.events = Some(events);
        added?;
        self.next += 1;
        self.list.push(Follower {
            number,
            socket,
            position: kept.start(),
            lags: false,
        });
        self.tell(kept);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// What to wait on.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Tells everybody what they can take.
    pub(super) fn tell(&mut self, kept: &Kept<'_>) {
        let Some(events) = &self.events else { return };
        self.list.retain_mut(|follower| match follower.tell(kept) {
            Ok(lags) => follower.wait(events, lags).is_ok(),
            // It has left.
            Err(_) => false,
        });
    }

    /// Takes in who has left and who takes more.
    pub(super) fn advance(&mut self, kept: &Kept<'_>) {
        let Some(events) = &self.events else { return };
        let mut happened = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok(count) = epoll::wait(events, &mut happened[..], Some(&now)) else {
            return;
        };
        let left: Vec<u64> = happened[..count]
            .iter()
            .filter(|event| {
                let flags = event.flags;
                flags.intersects(EventFlags::HUP | EventFlags::ERR)
            })
            .map(|event| event.data.u64())
            .collect();
        self.list.retain(|follower| !left.contains(&follower.number));
        if count > 0 {
            self.tell(kept);
        }
    }
}

impl Follower {
    /// Sends what it takes; answers whether there is more.
    fn tell(&mut self, kept: &Kept<'_>) -> Result<bool, Errno> {
        let start = kept.start();
        self.position = self.position.max(start);
        while self.position < kept.total {
            let skipped = usize::try_from(self.position - start).unwrap_or(usize::MAX);
            let left = kept.bytes.len().saturating_sub(skipped).min(MESSAGE_BYTES);
            let bytes: Vec<u8> = kept.bytes.range(skipped..skipped + left).copied().collect();
            match send(&self.socket, self.position, &bytes) {
                Ok(()) => self.position += left as u64,
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    /// Is woken when it takes more, or is not.
    fn wait(&mut self, events: &OwnedFd, lags: bool) -> Result<(), Errno> {
        if self.lags == lags {
            return Ok(());
        }
        self.lags = lags;
        let flags = if lags {
            EventFlags::OUT
        } else {
            EventFlags::empty()
        };
        epoll::modify(events, &self.socket, EventData::new_u64(self.number), flags)
    }
}

fn send(socket: &OwnedFd, position: u64, bytes: &[u8]) -> Result<(), Errno> {
    let position = position.to_le_bytes();
    let message = [IoSlice::new(&position), IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &message, &mut SendAncillaryBuffer::default(), flags).map(drop)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

    use super::super::tail::Tail;
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    /// What has come, in pieces with their positions.
    fn heard(socket: &OwnedFd) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut message = vec![0; MESSAGE_BYTES + 8];
        while let Ok((count @ 1.., _)) = rustix::net::recv(socket, &mut message[..], RecvFlags::empty()) {
            let position = u64::from_le_bytes(message[..8].try_into().unwrap());
            pieces.push((position, message[8..count].to_vec()));
        }
        pieces
    }

    #[test]
    fn a_follower_gets_what_was_and_what_comes() {
        let mut tail = Tail::default();
        tail.push(b"before ");
        let (ours, theirs) = pair();
        tail.follow(theirs).unwrap();
        tail.push(b"after");
        let (late, other) = pair();
        tail.follow(other).unwrap();
        assert_eq!(heard(&ours), [(0, b"before ".to_vec()), (7, b"after".to_vec())]);
        assert_eq!(heard(&late), [(0, b"before after".to_vec())]);
    }

    #[test]
    fn one_that_lags_is_told_by_the_position_what_it_missed_and_gets_the_rest_without_a_further_word() {
        let mut tail = Tail::default();
        let (ours, theirs) = pair();
        tail.follow(theirs).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..2000 {
            tail.push(&line);
        }
        let first = heard(&ours);
        let taken = first.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        assert!(taken < 2_000_000, "nobody waited");
        tail.advance();
        let rest = heard(&ours);
        assert!(rest[0].0 > taken, "a gap");
        let (position, bytes) = rest.last().unwrap();
        assert_eq!(position + bytes.len() as u64, 2_000_000);
    }

    #[test]
    fn one_that_leaves_is_forgotten_and_nobody_is_disturbed() {
        let mut tail = Tail::default();
        let (ours, theirs) = pair();
        let (stays, other) = pair();
        tail.follow(theirs).unwrap();
        tail.follow(other).unwrap();
        drop(ours);
        tail.advance();
        assert_eq!(tail.followers(), 1);
        tail.push(b"on");
        assert_eq!(heard(&stays), [(0, b"on".to_vec())]);
    }
}
