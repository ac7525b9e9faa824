//! Standard streams that are read and written by calls, where a process has no connections of its own.
//!
//! ```text
//!  WriteStdin ──► pair of sockets ──► pump ──► process ──► pump ──► pair of sockets ──► ReadStdout
//! ```
//!
//! To the pumps it is a connection like any other: back-pressure, draining and the end are theirs. Owns our side of
//! the pairs, and lets go of each when nothing can come of it any more.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kata_agent_proto::{Failed, FailureKind};
use rustix::net::{RecvFlags, Shutdown};

use crate::transport::Stream;

/// Most bytes of one answer.
const READ_MAX_BYTES: usize = 256 << 10;

/// Our side of one pair, until its end.
#[derive(Default)]
struct Side(Mutex<Option<Arc<Stream>>>);

impl Side {
    /// A pair: our side, and the one of a pump.
    fn pair() -> io::Result<(Self, Stream)> {
        let (ours, theirs) = Stream::pair()?;
        Ok((Side(Mutex::new(Some(Arc::new(ours)))), theirs))
    }

    fn stream(&self) -> Option<Arc<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Stdout,
    Stderr,
}

/// The streams of one process.
#[derive(Default)]
pub(crate) struct CallStreams {
    stdin: Side,
    /// What one call writes stays together.
    writing: tokio::sync::Mutex<()>,
    stdout: Side,
    stderr: Side,
}

/// The pumps' sides.
pub(crate) struct Ends {
    pub(crate) stdin: Stream,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
}

impl CallStreams {
    pub(crate) fn new() -> io::Result<(Self, Ends)> {
        let ((stdin, stdin_end), (stdout, stdout_end), (stderr, stderr_end)) =
            (Side::pair()?, Side::pair()?, Side::pair()?);
        let streams = CallStreams {
            stdin,
            writing: tokio::sync::Mutex::default(),
            stdout,
            stderr,
        };
        let ends = Ends {
            stdin: stdin_end,
            stdout: stdout_end,
            stderr: stderr_end,
        };
        Ok((streams, ends))
    }

    /// Writes all of it, as fast as the process reads.
    ///
    /// # Errors
    /// No such stream, when it is closed from either side.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), Failed> {
        let closed = || Failed::new(FailureKind::NoSuchStream, "standard input is closed");
        let stream = self.stdin.stream().ok_or_else(closed)?;
        let _alone = self.writing.lock().await;
        while !bytes.is_empty() {
            stream.writable().await.map_err(|_| closed())?;
            match stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(closed()),
            }
        }
        Ok(())
    }

    /// Ends standard input after what was written; twice is once.
    pub(crate) fn close_stdin(&self) {
        if let Some(stream) = self.stdin.stream() {
            // The other side may be gone, which is an end as well.
            let _ = rustix::net::shutdown(&*stream, Shutdown::Write);
        }
        self.stdin.end();
    }

    /// Some bytes, as soon as there are any; nothing at the end.
    pub(crate) async fn read(&self, which: Which, most: usize) -> Vec<u8> {
        let side = self.output(which);
        let Some(stream) = side.stream() else {
            return Vec::new();
        };
        let mut bytes = vec![0; most.min(READ_MAX_BYTES)];
        let read = loop {
            if stream.readable().await.is_err() {
                break 0;
            }
            match stream.try_read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.unwrap_or(0),
            }
        };
        if read == 0 {
            side.end();
        }
        bytes.truncate(read);
        bytes
    }

    fn output(&self, which: Which) -> &Side {
        match which {
            Which::Stdout => &self.stdout,
            Which::Stderr => &self.stderr,
        }
    }

    /// Lets go of what is read to its end, once the process is.
    pub(crate) fn release(&self) {
        self.stdin.end();
        for side in [&self.stdout, &self.stderr] {
            let ended = side.stream().is_some_and(|stream| {
                let looked = rustix::net::recv(&*stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
                matches!(looked, Ok((0, _)))
            });
            if ended {
                side.end();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_and_the_end_comes_after_it() {
        let (streams, mut ends) = CallStreams::new().expect("made");
        let megabyte = vec![7; 1 << 20];
        let (written, read) = tokio::join!(
            async {
                streams.write(&megabyte).await?;
                streams.close_stdin();
                Ok::<_, Failed>(())
            },
            async {
                let mut read = Vec::new();
                ends.stdin.read_to_end(&mut read).await.map(|_| read)
            }
        );
        written.expect("written");
        assert!(read.expect("read") == megabyte);
        let failed = streams.write(b"late").await.expect_err("closed");
        assert_eq!(failed.kind, FailureKind::NoSuchStream);
    }

    #[tokio::test]
    async fn reading_waits_and_ends_once_and_for_all() {
        let (streams, mut ends) = CallStreams::new().expect("made");
        let (read, written) = tokio::join!(streams.read(Which::Stdout, 3), ends.stdout.write_all(b"words"));
        written.expect("written");
        assert_eq!(read, b"wor");
        drop(ends);
        assert_eq!(streams.read(Which::Stdout, 100).await, b"ds");
        assert_eq!(streams.read(Which::Stdout, 100).await, b"");
        assert_eq!(streams.read(Which::Stdout, 100).await, b"");
        assert!(streams.stdout.stream().is_none(), "nothing is kept of it");
    }

    #[tokio::test]
    async fn only_what_is_left_to_read_is_kept_after_the_end() {
        let (streams, mut ends) = CallStreams::new().expect("made");
        ends.stdout.write_all(b"rest").await.expect("written");
        drop(ends);
        streams.release();
        assert!(streams.stderr.stream().is_none());
        assert_eq!(streams.read(Which::Stdout, 100).await, b"rest");
        streams.release();
        assert!(streams.stdout.stream().is_none());
    }
}
