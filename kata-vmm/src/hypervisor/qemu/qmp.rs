//! QEMU's machine protocol, as much of it as starting and watching one machine needs.
//!
//! Owns the framing (one JSON object per line) and the shapes of the messages (QEMU docs/interop/qmp-spec).
//! It must not know what the answers mean for the machine.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Deserialize;

/// Longest line that is accepted, in bytes; QEMU's answers here have a few hundred.
const LINE_BYTES_MAX: usize = 64 << 10;

/// What QEMU says.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Message {
    /// The first line.
    Greeting {
        /// Its content.
        #[serde(rename = "QMP")]
        greeting: Greeting,
    },
    /// Something happened.
    Event {
        /// Its name, e.g. `SHUTDOWN`.
        event: String,
        /// What belongs to it; only what a `SHUTDOWN` says.
        #[serde(default)]
        data: EventData,
    },
    /// A command succeeded.
    Return {
        /// Its result.
        #[serde(rename = "return")]
        result: serde_json::Value,
        /// The command, see [`Qmp::execute`].
        id: Option<String>,
    },
    /// A command failed.
    Error {
        /// Why.
        error: CommandError,
        /// The command, see [`Qmp::execute`].
        id: Option<String>,
    },
}

/// QEMU's first line.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Greeting {
    version: Version,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Version {
    qemu: Triple,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl Greeting {
    /// Product and version.
    pub(super) fn version(&self) -> String {
        let Triple { major, minor, micro } = self.version.qemu;
        format!("QEMU {major}.{minor}.{micro}")
    }
}

/// What belongs to an event.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct EventData {
    /// Why the machine shut down (QEMU qapi/run-state.json, `ShutdownCause`).
    pub(super) reason: Option<String>,
}

/// Why a command failed.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct CommandError {
    /// For people.
    pub(super) desc: String,
}

/// Our end of the connection.
#[derive(Debug)]
pub(super) struct Qmp {
    socket: UnixStream,
    received: Vec<u8>,
    ended: bool,
}

impl Qmp {
    /// Takes over a connected socket.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            received: Vec::new(),
            ended: false,
        })
    }

    /// What to wait on, until the end of the connection.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.socket.as_fd())
    }

    /// Sends a command without arguments; its answer carries `command` as its id.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) fn execute(&mut self, command: &str) -> io::Result<()> {
        let line = serde_json::json!({ "execute": command, "id": command });
        // The few short commands of a machine's life always fit the socket's buffer.
        self.socket.write_all(format!("{line}\n").as_bytes())
    }

    /// The messages that have arrived.
    ///
    /// # Errors
    /// When the other side does not speak the protocol; nothing more is read after that.
    pub(super) fn advance(&mut self) -> io::Result<Vec<Message>> {
        let mut bytes = [0; 4096];
        while !self.ended && self.received.len() <= LINE_BYTES_MAX {
            match self.socket.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                // Its writer is gone.
                Err(_) => self.ended = true,
            }
        }
        let messages = take_lines(&mut self.received);
        self.ended |= messages.is_err();
        messages
    }
}

/// Parses the complete lines of `received` and leaves the rest there.
fn take_lines(received: &mut Vec<u8>) -> io::Result<Vec<Message>> {
    let complete = received
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    if complete == 0 && received.len() > LINE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
    }
    let lines: Vec<u8> = received.drain(..complete).collect();
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| Ok(serde_json::from_slice(line)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 wrote it.
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}"#;
    const SHUTDOWN: &str = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;

    fn pair() -> (UnixStream, Qmp) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Qmp::new(ours).unwrap())
    }

    #[test]
    fn messages_are_told_apart() {
        let (mut theirs, mut qmp) = pair();
        let lines = [
            GREETING,
            r#"{"return": {}, "id": "qmp_capabilities"}"#,
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#,
            r#"{"id": "cont", "error": {"class": "GenericError", "desc": "no"}}"#,
            SHUTDOWN,
        ];
        for line in lines {
            theirs.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }
        let messages = qmp.advance().unwrap();
        let [
            Message::Greeting { greeting },
            Message::Return { id: Some(id), .. },
            Message::Event { event: resume, .. },
            Message::Error {
                error,
                id: Some(failed),
            },
            Message::Event { event, data },
        ] = &messages[..]
        else {
            panic!("{messages:?}");
        };
        assert_eq!(greeting.version(), "QEMU 7.2.22");
        assert_eq!((id.as_str(), resume.as_str()), ("qmp_capabilities", "RESUME"));
        assert_eq!((error.desc.as_str(), failed.as_str()), ("no", "cont"));
        assert_eq!(
            (event.as_str(), data.reason.as_deref()),
            ("SHUTDOWN", Some("guest-reset"))
        );
    }

    #[test]
    fn a_line_may_arrive_in_pieces() {
        let (mut theirs, mut qmp) = pair();
        let (first, second) = SHUTDOWN.split_at(30);
        theirs.write_all(first.as_bytes()).unwrap();
        assert_eq!(qmp.advance().unwrap(), []);
        theirs.write_all(format!("{second}\n{first}").as_bytes()).unwrap();
        assert_eq!(qmp.advance().unwrap().len(), 1);
        theirs.write_all(format!("{second}\n").as_bytes()).unwrap();
        drop(theirs);
        assert_eq!(qmp.advance().unwrap().len(), 1, "what came before the end counts");
        assert!(qmp.source().is_none());
    }

    #[test]
    fn what_is_not_the_protocol_ends_the_connection() {
        for bytes in [b"hello\n".to_vec(), vec![b'{'; 2 * LINE_BYTES_MAX]] {
            let (mut theirs, mut qmp) = pair();
            let writer = std::thread::spawn(move || {
                // The reader may leave before it has read everything.
                theirs.write_all(&bytes).ok();
            });
            let error = loop {
                match qmp.advance() {
                    Ok(messages) => assert_eq!(messages, []),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(qmp.source().is_none());
            drop(qmp);
            writer.join().unwrap();
        }
    }

    #[test]
    fn a_command_carries_its_name_as_its_id() {
        let (mut theirs, mut qmp) = pair();
        qmp.execute("cont").unwrap();
        drop(qmp);
        let mut line = String::new();
        theirs.read_to_string(&mut line).unwrap();
        assert_eq!(line, "{\"execute\":\"cont\",\"id\":\"cont\"}\n");
    }
}
