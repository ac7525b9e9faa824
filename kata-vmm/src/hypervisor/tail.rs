//! The last bytes of what a child or a guest writes.
//!
//! Owns the bound and the cleaning: whoever writes is not trusted, and what is kept ends on terminals and
//! in messages. It must not know who writes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::followers::{Followers, Kept};

/// How much is kept, in bytes.
const KEPT_BYTES: usize = 64 << 10;

/// How much [`Tail::text`] gives at most, in bytes: with JSON's escapes it fits a control message twice.
pub(crate) const TEXT_BYTES: usize = 16 << 10;

/// The end of a byte stream, which others may follow.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    kept: VecDeque<u8>,
    /// Bytes of the whole stream.
    total: u64,
    followers: Followers,
}

impl Tail {
    /// Appends, and forgets the oldest bytes beyond the bound.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(KEPT_BYTES);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
        let (followers, kept) = self.parts();
        followers.tell(&kept);
    }

    /// Has everything that is kept, and what comes, sent to a socket; see [`Followers`].
    pub(crate) fn follow(&mut self, socket: OwnedFd) -> io::Result<()> {
        let (followers, kept) = self.parts();
        followers.add(socket, &kept)
    }

    /// What to wait on for those who follow; may change with every call.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.followers.source()
    }

    /// Goes on with those who follow and were not ready.
    pub(crate) fn advance(&mut self) {
        let (followers, kept) = self.parts();
        followers.advance(&kept);
    }

    fn parts(&mut self) -> (&mut Followers, Kept<'_>) {
        let kept = Kept {
            bytes: &self.kept,
            total: self.total,
        };
        (&mut self.followers, kept)
    }

    #[cfg(test)]
    pub(super) fn followers(&self) -> usize {
        self.followers.count()
    }

    /// The last lines as text of at most [`TEXT_BYTES`]: no partial first line when something was cut off,
    /// no control characters but line feeds and tabs, so that a guest cannot drive the reader's terminal.
    pub(crate) fn text(&self) -> String {
        let (a, b) = self.kept.as_slices();
        let bytes = [a, b].concat();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
            .collect();
        let cut = text.ceil_char_boundary_at(text.len().saturating_sub(TEXT_BYTES));
        if cut == 0 && self.kept.len() < KEPT_BYTES {
            return text;
        }
        let rest = &text[cut..];
        rest.split_once('\n').map_or(rest, |(_, lines)| lines).to_owned()
    }
}

/// `str::ceil_char_boundary` is newer than this package's oldest compiler.
trait CharBoundary {
    fn ceil_char_boundary_at(&self, index: usize) -> usize;
}

impl CharBoundary for String {
    fn ceil_char_boundary_at(&self, index: usize) -> usize {
        (index..self.len())
            .find(|at| self.is_char_boundary(*at))
            .unwrap_or(self.len())
    }
}

/// A descriptor that is read to its end into a [`Tail`].
#[derive(Debug)]
pub(crate) struct TailReader {
    source: Option<OwnedFd>,
    tail: Tail,
}

impl TailReader {
    /// Reads from `source`, a pipe or socket, which it makes non-blocking.
    pub(crate) fn new(source: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&source, true)?;
        Ok(Self {
            source: Some(source),
            tail: Tail::default(),
        })
    }

    /// What to wait on: the stream until its end, and those who follow it.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let stream = self.source.as_ref().map(AsFd::as_fd);
        stream.into_iter().chain(self.tail.source())
    }

    /// See [`Tail::follow`].
    pub(crate) fn follow(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.tail.follow(socket)
    }

    /// Takes in what is there, up to as much as is kept: a writer that never pauses cannot hold the caller.
    pub(crate) fn drain(&mut self) {
        self.tail.advance();
        let mut bytes = [0; 4096];
        for _ in 0..KEPT_BYTES / bytes.len() {
            let Some(source) = &self.source else { return };
            match rustix::io::read(source, &mut bytes) {
                Ok(0) => self.source = None,
                Ok(count) => self.tail.push(&bytes[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // A reset socket: its writer is gone.
                Err(_) => self.source = None,
            }
        }
    }

    /// See [`Tail::text`].
    pub(crate) fn text(&self) -> String {
        self.tail.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_kept_whole() {
        let mut tail = Tail::default();
        tail.push(b"one\r\ntwo\tthree");
        assert_eq!(tail.text(), "one\ntwo\tthree");
        assert_eq!(Tail::default().text(), "");
    }

    #[test]
    fn what_is_long_is_cut_at_a_line() {
        let mut tail = Tail::default();
        for line in 0..100_000 {
            tail.push(format!("line {line}\n").as_bytes());
        }
        assert!(tail.kept.len() <= KEPT_BYTES);
        let text = tail.text();
        assert!(
            text.len() <= TEXT_BYTES && text.len() > TEXT_BYTES - 20,
            "{}",
            text.len()
        );
        assert!(
            text.starts_with("line ") && text.ends_with("line 99999\n"),
            "{text}"
        );
        tail.push(&vec![b'x'; 10 * KEPT_BYTES]);
        assert_eq!(tail.text(), "x".repeat(TEXT_BYTES));
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal_that_shows_it() {
        let mut tail = Tail::default();
        tail.push(b"\x1b[2Jbad\x07\xc2\x9b31m\x00 \xff end");
        assert_eq!(tail.text(), "[2Jbad31m \u{fffd} end");
    }

    #[test]
    fn invalid_utf8_stays_within_the_bound() {
        let mut tail = Tail::default();
        tail.push(&[0xff; KEPT_BYTES]);
        assert!(tail.text().len() <= TEXT_BYTES);
    }

    #[test]
    fn a_reader_ends_with_its_writer() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut reader = TailReader::new(read).unwrap();
        rustix::io::write(&write, b"last words").unwrap();
        reader.drain();
        assert!(reader.sources().next().is_some(), "the writer lives");
        drop(write);
        reader.drain();
        assert!(reader.sources().next().is_none());
        assert_eq!(reader.text(), "last words");
    }
}
