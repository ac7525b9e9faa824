//! The console's lines, from the messages of [`Request::FollowConsole`](kata_vmm::control::Request::FollowConsole).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use super::{LINE_BYTES_MAX, Log, LogSource, printable};
use crate::launch::watch;

/// Bytes of a position in front of a message's bytes.
const POSITION_BYTES: usize = 8;

/// Longest message that is taken in.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Console {
    socket: AsyncFd<OwnedFd>,
    message: Vec<u8>,
    lines: Lines,
    ended: bool,
}

impl Console {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket)?,
            message: vec![0; MESSAGE_BYTES_MAX],
            lines: Lines::default(),
            ended: false,
        })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Log>> {
        loop {
            if let Some(log) = self.lines.told.pop_front() {
                return Poll::Ready(Some(log));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Ok(mut ready) = ready!(self.socket.poll_read_ready(cx)) else {
                self.ended = true;
                continue;
            };
            let read = ready.try_io(|socket| Ok(rustix::io::read(socket, &mut self.message)?));
            match read {
                Err(_would_block) => {}
                Ok(Ok(count)) if count > POSITION_BYTES => self.lines.take(&self.message[..count]),
                // The monitor has ended, or says what it does not say.
                Ok(_) => {
                    self.ended = true;
                    self.lines.end();
                }
            }
        }
    }
}

/// Messages to lines.
#[derive(Debug, Default)]
struct Lines {
    told: VecDeque<Log>,
    /// A line that has no end yet.
    line: Vec<u8>,
    /// Where the next message begins.
    expected: Option<u64>,
}

impl Lines {
    fn take(&mut self, message: &[u8]) {
        let Some((position, bytes)) = message.split_first_chunk::<POSITION_BYTES>() else {
            return;
        };
        let position = u64::from_le_bytes(*position);
        let lost = position.saturating_sub(self.expected.unwrap_or(0));
        if lost > 0 {
            self.end();
            self.told.push_back(Log::Lost {
                source: LogSource::Console,
                count: lost,
            });
        }
        self.expected = Some(position.saturating_add(bytes.len() as u64));
        for byte in bytes {
            match byte {
                b'\n' => self.tell(),
                _ => self.line.push(*byte),
            }
            if self.line.len() >= LINE_BYTES_MAX {
                self.tell();
            }
        }
    }

    fn tell(&mut self) {
        let line = printable(&std::mem::take(&mut self.line));
        self.told.push_back(Log::Console(line));
    }

    /// Nothing follows the line that has no end.
    fn end(&mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(position: u64, bytes: &[u8]) -> Vec<u8> {
        [&position.to_le_bytes()[..], bytes].concat()
    }

    fn line(text: &str) -> Log {
        Log::Console(text.into())
    }

    #[test]
    fn lines_are_told_whole_and_what_is_lost_by_its_size() {
        let mut lines = Lines::default();
        lines.take(&message(0, b"one\r\ntwo"));
        lines.take(&message(8, b" words\n\x1b[2Jred\n"));
        lines.take(&message(100, b"cut\nend"));
        lines.end();
        let lost = Log::Lost {
            source: LogSource::Console,
            count: 100 - 23,
        };
        let expected = [
            line("one"),
            line("two words"),
            line("[2Jred"),
            lost,
            line("cut"),
            line("end"),
        ];
        assert_eq!(lines.told, expected);
    }

    #[test]
    fn a_console_that_began_before_what_is_kept_says_so() {
        let mut lines = Lines::default();
        lines.take(&message(7, b"x\n"));
        let lost = Log::Lost {
            source: LogSource::Console,
            count: 7,
        };
        assert_eq!(lines.told, [lost, line("x")]);
    }

    #[test]
    fn a_line_without_an_end_comes_in_pieces() {
        let mut lines = Lines::default();
        for at in 0..4 {
            lines.take(&message(at * 10_000, &[b'x'; 10_000]));
            assert!(lines.line.len() < LINE_BYTES_MAX);
        }
        assert_eq!(lines.told.len(), 40_000 / LINE_BYTES_MAX);
        lines.take(&message(u64::MAX, b"far\n"));
    }
}
