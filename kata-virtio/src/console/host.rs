//! The host's side of the console: where output goes, where input comes from, and the one descriptor
//! that says when either can go on.
//!
//! Owns the two descriptors and what the output has not taken; knows no queue.
//!
//! ```text
//!  output:  idle ── pushed, would block ──► watched ── drained ──► idle       broken pipe ──► closed
//!  input:   idle ── guest has a buffer, nothing to read ──► watched ── read ──► idle    end ──► closed
//! ```
//!
//! Both are watched by edges, and looked at until they would block. The master of a terminal whose other
//! side is closed says so as long as that lasts, and is no end: a program may open it again. Until then output is
//! only tried when there is more of it, because each attempt is an edge too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::termios::isatty;
use rustix::time::Timespec;

use super::backlog::Backlog;
use super::figures::Figures;
use crate::complaint::Complaints;

/// Waiting output above which it is offered to the host at once, and not at the end of the turn.
const FLUSH_BYTES: usize = 16 << 10;

/// Descriptors that are watched: the wake, the output, the input.
const WATCHED_MOST: usize = 3;

/// Events of the output, and of the others.
const OUTPUT: u64 = 1;
const OTHER: u64 = 0;

/// A descriptor of the host and how it is used.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    socket: bool,
    terminal: bool,
    /// Regular files are never waited for: they cannot be watched, and are always ready.
    watchable: bool,
    watched: bool,
}

/// What came from the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// There is no input, or no more.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Host {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    output: Option<End>,
    input: Option<End>,
    backlog: Backlog,
    /// The output is a terminal that nobody has open, and full.
    detached: bool,
    figures: Arc<Figures>,
    complaints: Complaints,
}

impl Host {
    pub(super) fn new(
        output: OwnedFd,
        input: Option<OwnedFd>,
        wake: Arc<OwnedFd>,
        figures: Arc<Figures>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, EventData::new_u64(OTHER), EventFlags::IN)?;
        Ok(Self {
            output: Some(End::new(output, &epoll)?),
            input: input.map(|input| End::new(input, &epoll)).transpose()?,
            epoll,
            wake,
            backlog: Backlog::default(),
            detached: false,
            figures,
            complaints: Complaints::new("console"),
        })
    }

    /// Readable when there is something to do.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Makes [`events`](Self::events) readable.
    pub(super) fn wake(&self) {
        wake(&self.wake);
    }

    /// Takes note of wakes, and of the edges: both sides are to be tried again.
    pub(super) fn asleep(&mut self) -> io::Result<()> {
        let mut seen = Vec::with_capacity(WATCHED_MOST);
        let now = Timespec::default();
        match epoll::wait(&self.epoll, spare_capacity(&mut seen), Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let terminal = self.output.as_ref().is_some_and(|output| output.terminal);
        for event in seen.iter().filter(|event| event.data.u64() == OUTPUT) {
            // A packed field is copied before it is used.
            let flags = event.flags;
            self.detached = terminal && flags.contains(EventFlags::HUP);
        }
        match rustix::io::read(&*self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// A complaint about the guest.
    pub(super) fn complain(&mut self, about: &dyn std::fmt::Display) {
        self.complaints.warn(about);
    }

    /// Bytes that the host has not taken.
    pub(super) fn waiting(&self) -> &Backlog {
        &self.backlog
    }

    /// Output of the guest; it is offered to the host by [`flush`](Self::flush), at the latest.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.backlog.len() + bytes.len() > FLUSH_BYTES {
            self.flush();
        }
        if self.output.is_none() {
            self.figures.dropped.add(bytes.len());
            return;
        }
        self.detached = false;
        let dropped = self.backlog.push(bytes);
        self.figures.dropped.add(dropped);
    }

    /// Gives the host what it takes now, and watches for it to take the rest.
    pub(super) fn flush(&mut self) {
        while let Some(output) = &self.output
            && !self.backlog.is_empty()
            && !self.detached
        {
            match output.write(self.backlog.front()) {
                Ok(count) => self.backlog.consume(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(cause) => self.lose(cause),
            }
        }
        let waits = !self.backlog.is_empty();
        let watched = self
            .output
            .as_mut()
            .map_or(Ok(()), |output| output.watch(&self.epoll, EventFlags::OUT, waits));
        self.note(watched);
    }

    /// Reads what the host has for the guest.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Read {
        let Some(input) = &self.input else {
            return Read::Ended;
        };
        let cause = loop {
            match input.read(into) {
                Ok(0) => break None,
                Ok(count) => return Read::Bytes(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Read::Nothing,
                // Nobody has the other side open.
                Err(Errno::IO) if input.terminal => return Read::Nothing,
                Err(cause) => break Some(cause),
            }
        };
        if let Some(cause) = cause {
            self.figures.errors.add(1);
            self.complaints.warn(&format_args!("input has ended: {cause}"));
        }
        self.listen(false);
        self.input = None;
        Read::Ended
    }

    /// Watches the input, or does not: while the guest has no buffer nothing is to be read.
    pub(super) fn listen(&mut self, wanted: bool) {
        let watched = self
            .input
            .as_mut()
            .map_or(Ok(()), |input| input.watch(&self.epoll, EventFlags::IN, wanted));
        self.note(watched);
    }

    /// The output failed. Nobody reads a broken pipe again; after anything else, as a full disk, the
    /// next output is tried.
    fn lose(&mut self, cause: Errno) {
        self.figures.errors.add(1);
        self.figures.dropped.add(self.backlog.clear());
        if matches!(cause, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) {
            log::info!("console: nobody reads the output any more: {cause}");
            let watched = self
                .output
                .as_mut()
                .map_or(Ok(()), |output| output.watch(&self.epoll, EventFlags::OUT, false));
            self.note(watched);
            self.output = None;
        } else {
            self.complaints.warn(&format_args!("output is lost: {cause}"));
        }
    }

    fn note(&mut self, watched: rustix::io::Result<()>) {
        if let Err(cause) = watched {
            self.figures.errors.add(1);
            self.complaints
                .warn(&format_args!("the host's side cannot be watched: {cause}"));
        }
    }
}

impl End {
    fn new(fd: OwnedFd, epoll: &OwnedFd) -> io::Result<Self> {
        let socket = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::Socket;
        if !socket {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        let watchable = match epoll::add(epoll, &fd, EventData::new_u64(OTHER), EventFlags::empty()) {
            Ok(()) => true,
            Err(Errno::PERM) => false,
            Err(cause) => return Err(cause.into()),
        };
        if watchable {
            // A hang-up is reported to those who did not ask.
            epoll::delete(epoll, &fd)?;
        }
        Ok(Self {
            terminal: isatty(&fd),
            fd,
            socket,
            watchable,
            watched: false,
        })
    }

    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        if self.socket {
            return rustix::net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        rustix::io::write(&self.fd, bytes)
    }

    fn read(&self, into: &mut [u8]) -> rustix::io::Result<usize> {
        if self.socket {
            return rustix::net::recv(&self.fd, into, RecvFlags::DONTWAIT).map(|(count, _)| count);
        }
        rustix::io::read(&self.fd, into)
    }

    fn watch(&mut self, epoll: &OwnedFd, events: EventFlags, wanted: bool) -> rustix::io::Result<()> {
        if self.watchable && wanted != self.watched {
            if wanted {
                let token = if events == EventFlags::OUT { OUTPUT } else { OTHER };
                epoll::add(
                    epoll,
                    &self.fd,
                    EventData::new_u64(token),
                    events | EventFlags::ET,
                )?;
            } else {
                epoll::delete(epoll, &self.fd)?;
            }
            self.watched = wanted;
        }
        Ok(())
    }
}

/// Adds one to the event; it can only fail when 2⁶⁴ wakes wait already, and then it is readable.
pub(super) fn wake(event: &OwnedFd) {
    if let Err(cause) = rustix::io::write(event, &1u64.to_ne_bytes()) {
        log::debug!("console: the worker is awake already: {cause}");
    }
}
