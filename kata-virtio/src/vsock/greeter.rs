//! The Unix-socket face: clients that ask for a connection to a port of the guest by a line of text.
//!
//! The protocol is Firecracker's published one (its `docs/vsock.md`): the client writes
//! `CONNECT <guest port>\n`, reads `OK <host port>\n` once the guest accepted, and from then on has a
//! raw stream; a refusal is an end of file. Knows nothing of the guest: it hands over the stream, whose
//! next byte is the first after the line, and the port.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::RecvFlags;

/// `CONNECT 4294967295\n`, and generous room for spaces.
const LINE_MAX_BYTES: usize = 32;

/// Clients whose line is not complete.
#[derive(Debug)]
pub(crate) struct Greeter {
    listener: UnixListener,
    waiting: HashMap<u64, UnixStream>,
}

/// What became of a client.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Its line is not complete.
    NotYet,
    /// It asked for this port.
    Port(UnixStream, u32),
    /// It hung up, or wrote something else.
    Gone(UnixStream),
}

impl Greeter {
    /// Takes clients from `listener`, which it makes non-blocking.
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            waiting: HashMap::new(),
        })
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Clients that have not said what they want.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next client that knocked.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// Waits for the line of a client, which goes by the name of `id`.
    pub(crate) fn wait(&mut self, id: u64, stream: UnixStream) {
        self.waiting.insert(id, stream);
    }

    /// Whether `id` waits here.
    pub(crate) fn knows(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Looks at what client `id` wrote; bytes after the line are left in the stream.
    pub(crate) fn look(&mut self, id: u64) -> Asked {
        let Some(stream) = self.waiting.remove(&id) else {
            return Asked::NotYet;
        };
        match read_line(&stream) {
            Ok(Some(port)) => Asked::Port(stream, port),
            Ok(None) => {
                self.waiting.insert(id, stream);
                Asked::NotYet
            }
            Err(_) => Asked::Gone(stream),
        }
    }
}

/// Takes the line off the stream when it is complete.
fn read_line(stream: &UnixStream) -> io::Result<Option<u32>> {
    let mut bytes = [0; LINE_MAX_BYTES];
    let seen = match rustix::net::recv(stream, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((seen, _)) if seen > 0 => seen,
        Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(Errno::AGAIN) => return Ok(None),
        Err(cause) => return Err(cause.into()),
    };
    let Some(end) = bytes[..seen].iter().position(|&byte| byte == b'\n') else {
        return if seen < LINE_MAX_BYTES {
            Ok(None)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        };
    };
    let port = parse(&bytes[..end]).ok_or(io::ErrorKind::InvalidData)?;
    rustix::net::recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT)?;
    Ok(Some(port))
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let port = (words.next()? == "CONNECT").then(|| words.next())??;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (digits && words.next().is_none()).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn only_a_whole_line_counts_and_nothing_after_it_is_taken() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        assert!(matches!(read_line(&ours), Ok(None)));
        client.write_all(b"CONNECT 10").unwrap();
        assert!(matches!(read_line(&ours), Ok(None)));
        client.write_all(b"24\nhello").unwrap();
        assert!(matches!(read_line(&ours), Ok(Some(1024))));
        let mut rest = [0; 5];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "connect 1",
            "CONNECT",
            "CONNECT x",
            "CONNECT +1",
            "CONNECT 4294967296",
            "CONNECT 1 2",
            "",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT 4294967295"), Some(u32::MAX));
        assert_eq!(parse(b"CONNECT 7\r"), Some(7));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        client.write_all(&[b'C'; LINE_MAX_BYTES]).unwrap();
        assert!(read_line(&ours).is_err());
    }
}
