//! The host's end of the wire from the bed's init: lines with a sign in front (the list is in
//! `xtask/bed-init/src/port.rs`), read with a deadline.
//!
//! It must not know what to do when the deadline has passed.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How the job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this status.
    Exit(u8),
    /// By this signal.
    Signal(u8),
}

/// What the init says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// The job starts.
    Begin,
    /// The job printed a line.
    Line(String),
    /// The job ended.
    Ended(End),
    /// There was no job, and why.
    NoJob(String),
}

/// What waiting for a message brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// A message.
    Message(Message),
    /// The other end is closed.
    End,
    /// Time is up.
    Deadline,
}

/// The socket, and what was read of an incomplete line.
#[derive(Debug)]
pub(super) struct Wire {
    socket: UnixStream,
    unread: Vec<u8>,
}

impl Wire {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            unread: Vec::new(),
        }
    }

    /// The next message, if one comes before the deadline. Anything that is none was not said by the init
    /// and is passed on as a line.
    pub(super) fn next(&mut self, until: Option<Instant>) -> io::Result<Heard> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                return Ok(Heard::Message(Message::parse(
                    text.trim_end_matches(['\n', '\r']),
                )));
            }
            match self.read(until)? {
                Some(0) => return Ok(Heard::End),
                Some(_) => {}
                None => return Ok(Heard::Deadline),
            }
        }
    }

    fn read(&mut self, until: Option<Instant>) -> io::Result<Option<usize>> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        // Below a microsecond it would mean no limit at all.
        self.socket
            .set_read_timeout(left.map(|left| left.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                Ok(Some(count))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(None),
                io::ErrorKind::Interrupted => self.read(until),
                // QEMU that is killed leaves what nobody reads any more.
                io::ErrorKind::ConnectionReset => Ok(Some(0)),
                _ => Err(error),
            },
        }
    }
}

impl Message {
    fn parse(line: &str) -> Self {
        let number = |text: &str| text.trim().parse().ok();
        let ended = |end: &str| match end.split_once(' ')? {
            ("exit", status) => number(status).map(End::Exit),
            ("signal", signal) => number(signal).map(End::Signal),
            _ => None,
        };
        let message = match line.split_at_checked(1) {
            Some(("*", "")) => Some(Self::Begin),
            Some((">", text)) => Some(Self::Line(text.to_owned())),
            Some(("!", why)) => Some(Self::NoJob(why.to_owned())),
            Some(("=", end)) => ended(end).map(Self::Ended),
            _ => None,
        };
        message.unwrap_or_else(|| Self::Line(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn messages_come_one_by_one_however_they_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours);
        theirs.write_all(b"*\n>test a ... ").unwrap();
        assert_eq!(wire.next(soon()).unwrap(), Heard::Message(Message::Begin));
        let past = Some(Instant::now());
        assert_eq!(wire.next(past).unwrap(), Heard::Deadline);
        theirs
            .write_all(b"ok\n=exit 101\n!no disk\n=signal 9\n>\n")
            .unwrap();
        drop(theirs);
        for message in [
            Message::Line("test a ... ok".to_owned()),
            Message::Ended(End::Exit(101)),
            Message::NoJob("no disk".to_owned()),
            Message::Ended(End::Signal(9)),
            Message::Line(String::new()),
        ] {
            assert_eq!(wire.next(soon()).unwrap(), Heard::Message(message));
        }
        assert_eq!(wire.next(soon()).unwrap(), Heard::End);
    }

    #[test]
    fn what_is_no_message_is_a_line() {
        assert_eq!(Message::parse("=exit x"), Message::Line("=exit x".to_owned()));
        assert_eq!(Message::parse(""), Message::Line(String::new()));
    }
}
