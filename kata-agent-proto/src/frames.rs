//! The frames of a connection, looked at as they pass: what no agent has a reason to send ends the connection.
//!
//! ```text
//!  header (10 bytes): length, stream, type, flags ──► as many bytes of a message ──► the next header
//! ```
//!
//! ttrpc itself takes up to 4 MiB for an answer, reads and throws away what is longer, keeps what comes for a call
//! that nobody polls, and skips what nobody asked for, for as long as it comes. Here an answer is bounded, comes once,
//! and comes to a request; so an agent can cost no more memory and time than the requests that it was sent. Owns
//! that rule. Must not know what the messages say.

use std::collections::HashSet;

/// Longest answer in bytes. A message of that many bytes can have a hundred times as many in memory.
pub(crate) const ANSWER_MAX_BYTES: u32 = 1 << 20;

/// Length of a header.
const HEADER_BYTES: usize = 10;
/// Types of frames (ttrpc PROTOCOL.md, message types).
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// What an agent did that none does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("an answer of {0} bytes, where {ANSWER_MAX_BYTES} are the most")]
    TooLong(u32),
    #[error("a frame of type {0}")]
    Type(u8),
    #[error("an answer to a request {0} that was not made, or that had one")]
    Unasked(u32),
}

/// A header.
#[derive(Debug, Clone, Copy)]
struct Header {
    length: u32,
    stream: u32,
    kind: u8,
}

/// How far one direction is in its frame.
#[derive(Debug, Default)]
struct Progress {
    header: Vec<u8>,
    /// Bytes of the message still to come.
    body: u32,
}

impl Progress {
    /// Takes bytes, and shows each header as soon as it is complete.
    fn pass<E>(&mut self, mut bytes: &[u8], mut see: impl FnMut(Header) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.body > 0 {
                let taken = bytes.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
                // No more than `body`, which is 32 bits.
                self.body -= u32::try_from(taken).unwrap_or(self.body);
                bytes = &bytes[taken..];
                continue;
            }
            let taken = bytes.len().min(HEADER_BYTES - self.header.len());
            self.header.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [a, b, c, d, e, f, g, h, kind, _] = self.header[..] {
                self.header.clear();
                let header = Header {
                    length: u32::from_be_bytes([a, b, c, d]),
                    stream: u32::from_be_bytes([e, f, g, h]),
                    kind,
                };
                self.body = header.length;
                see(header)?;
            }
        }
        Ok(())
    }

    /// Whether more of a frame has to come.
    fn is_within_frame(&self) -> bool {
        self.body > 0 || !self.header.is_empty()
    }
}

/// Both directions of a connection, from the side that asks.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    sent: Progress,
    received: Progress,
    /// Requests without an answer so far.
    unanswered: HashSet<u32>,
}

impl Frames {
    /// Bytes that were sent.
    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        let unanswered = &mut self.unanswered;
        // What we send ourselves breaks nothing.
        let _ = self.sent.pass(bytes, |header| {
            if header.kind == REQUEST {
                unanswered.insert(header.stream);
            }
            Ok::<_, Breach>(())
        });
    }

    /// Bytes that came.
    pub(crate) fn received(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        let unanswered = &mut self.unanswered;
        self.received.pass(bytes, |header| {
            if header.kind != RESPONSE {
                return Err(Breach::Type(header.kind));
            }
            if header.length > ANSWER_MAX_BYTES {
                return Err(Breach::TooLong(header.length));
            }
            if !unanswered.remove(&header.stream) {
                return Err(Breach::Unasked(header.stream));
            }
            Ok(())
        })
    }

    /// Whether an end here cuts an answer in two.
    pub(crate) fn is_within_answer(&self) -> bool {
        self.received.is_within_frame()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u32, stream: u32, kind: u8) -> Vec<u8> {
        let mut frame = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        frame.extend([kind, 0]);
        frame
    }

    /// What is said to one request, cut into pieces of `size` bytes.
    fn answered(answers: &[u8], size: usize) -> Result<(), Breach> {
        let mut frames = Frames::default();
        let request = [frame(3, 1, REQUEST), vec![1, 2, 3], frame(0, 3, REQUEST)].concat();
        request.chunks(size).for_each(|piece| frames.sent(piece));
        answers.chunks(size).try_for_each(|piece| frames.received(piece))
    }

    #[test]
    fn answers_come_once_and_to_a_request_however_they_are_cut() {
        let first = [frame(2, 3, RESPONSE), vec![9, 9]].concat();
        let second = frame(0, 1, RESPONSE);
        for size in 1..30 {
            assert_eq!(answered(&[&first[..], &second].concat(), size), Ok(()));
            let twice = [&first[..], &first].concat();
            assert_eq!(answered(&twice, size), Err(Breach::Unasked(3)));
            assert_eq!(answered(&frame(0, 5, RESPONSE), size), Err(Breach::Unasked(5)));
            assert_eq!(answered(&frame(0, 1, 3), size), Err(Breach::Type(3)));
            let long = ANSWER_MAX_BYTES + 1;
            assert_eq!(
                answered(&frame(long, 1, RESPONSE), size),
                Err(Breach::TooLong(long))
            );
        }
    }

    #[test]
    fn an_end_anywhere_within_an_answer_cuts_it() {
        let answer = [frame(2, 1, RESPONSE), vec![9, 9]].concat();
        for length in 0..=answer.len() {
            let mut frames = Frames::default();
            frames.sent(&frame(0, 1, REQUEST));
            frames.received(&answer[..length]).unwrap();
            let whole = length == 0 || length == answer.len();
            assert_eq!(frames.is_within_answer(), !whole, "{length} bytes");
        }
    }
}
