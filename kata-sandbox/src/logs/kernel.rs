//! The kernel's records, as `/dev/kmsg` has them, from a stream.
//!
//! `<priority>,<sequence>,<microseconds>,<flags>[,...];<text>\n`, and lines with a space in front that say more of the
//! record. What is not printable in the text is written as `\xNN` (Documentation/ABI/testing/dev-kmsg).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use super::{KernelRecord, LINE_BYTES_MAX, Log, LogSource, printable};

/// Bits of a priority that are the level; the rest is the facility (syslog(3)).
const LEVEL_BITS: u32 = 3;

/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Kernel {
    stream: UnixStream,
    records: Records,
    ended: bool,
}

impl Kernel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            records: Records::default(),
            ended: false,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Log>> {
        loop {
            if let Some(log) = self.records.next() {
                return Poll::Ready(Some(log));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            // A reset is the end of the machine.
            self.ended = read.is_err() || buffer.filled().is_empty();
            self.records.feed(buffer.filled());
        }
    }
}

/// Bytes to records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Bytes that came and are not told.
    bytes: Vec<u8>,
    /// How many of them were looked at.
    position: usize,
    /// The number that the next record has to have.
    expected: Option<u64>,
    /// A record that is told after what is missing before it.
    after: Option<KernelRecord>,
}

impl Records {
    /// Takes in bytes; whoever calls it takes all records before it calls again.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.position));
        // A line without an end is none.
        if self.bytes.len() > LINE_BYTES_MAX {
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn line(&mut self) -> Option<&[u8]> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        let begin = self.position;
        self.position += length + 1;
        Some(&self.bytes[begin..begin + length])
    }

    /// The next record, or how many are missing before it. What is no record is passed over.
    pub(crate) fn next(&mut self) -> Option<Log> {
        if let Some(record) = self.after.take() {
            return Some(Log::Kernel(record));
        }
        let record = loop {
            if let Some(record) = parse(self.line()?) {
                break record;
            }
        };
        let expected = self.expected.replace(record.sequence.saturating_add(1));
        // The first may have any number: that is what the kernel still has.
        let missing = record
            .sequence
            .saturating_sub(expected.unwrap_or(record.sequence));
        if missing == 0 {
            return Some(Log::Kernel(record));
        }
        self.after = Some(record);
        Some(Log::Lost {
            source: LogSource::Kernel,
            count: missing,
        })
    }
}

/// One record; `None` for what says more of the one before, and for what is none.
fn parse(line: &[u8]) -> Option<KernelRecord> {
    let semicolon = line.iter().position(|byte| *byte == b';')?;
    let (head, text) = (
        std::str::from_utf8(line.get(..semicolon)?).ok()?,
        line.get(semicolon + 1..)?,
    );
    let mut numbers = head.split(',');
    let priority: u32 = numbers.next()?.parse().ok()?;
    let sequence = numbers.next()?.parse().ok()?;
    let microseconds = numbers.next()?.parse().ok()?;
    Some(KernelRecord {
        level: u8::try_from(priority & ((1 << LEVEL_BITS) - 1)).ok()?,
        facility: priority >> LEVEL_BITS,
        sequence,
        since_boot: Duration::from_micros(microseconds),
        text: printable(&unescaped(text)),
    })
}

/// `\xNN` to the byte that it stands for.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, after @ ..] => hex(*high).zip(hex(*low)).map(|digits| (digits, after)),
            _ => None,
        };
        match escaped {
            Some(((high, low), after)) => {
                bytes.push(high << 4 | low);
                rest = after;
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(chunks: &[&[u8]]) -> Vec<String> {
        let mut records = Records::default();
        let mut told = Vec::new();
        for chunk in chunks {
            records.feed(chunk);
            while let Some(log) = records.next() {
                told.push(log.to_string());
            }
        }
        told
    }

    #[test]
    fn records_are_told_with_time_and_level_however_they_arrive() {
        let bytes = b"6,0,0,-;Linux version\n SUBSYSTEM=acpi\n DEVICE=+acpi\n4,1,1500000,c,more;a;b\\x0ac\n30,2,2000001,-;agent\n";
        let expected = [
            "[    0.000000] <6> Linux version",
            "[    1.500000] <4> a;b\nc",
            "[    2.000001] <6> agent",
        ];
        assert_eq!(told(&[bytes]), expected);
        for at in 0..bytes.len() {
            assert_eq!(told(&[&bytes[..at], &bytes[at..]]), expected, "{at}");
        }
        let mut records = Records::default();
        records.feed(b"30,2,5,-;x\n");
        let Some(Log::Kernel(record)) = records.next() else {
            panic!("a record")
        };
        assert_eq!((record.level, record.facility), (6, 3));
    }

    #[test]
    fn what_is_missing_is_counted() {
        let told = told(&[
            b"6,7,0,-;first\n6,8,0,-;second\n",
            b"6,20,0,-;later\n6,3,0,-;earlier\n",
        ]);
        assert_eq!(
            told[2..],
            [
                "(11 records of the kernel are lost)",
                "[    0.000000] <6> later",
                "[    0.000000] <6> earlier"
            ]
        );
    }

    #[test]
    fn what_is_no_record_costs_nothing() {
        let mut records = Records::default();
        for _ in 0..1000 {
            records.feed(&[b'x'; READ_BYTES]);
            assert_eq!(records.next(), None);
            assert!(records.bytes.len() <= LINE_BYTES_MAX + 2 * READ_BYTES);
        }
        let odd: [&[u8]; 6] = [
            b"\n;\n,;\n",
            b"6;x\n",
            b"-1,2,3,-;x\n",
            b"6,99999999999999999999999,0,-;x\n",
            b"\xff,1,1,-;x\n",
            b" 6,1,1,-;x\n",
        ];
        for bytes in odd {
            let mut records = Records::default();
            records.feed(bytes);
            assert_eq!(records.next(), None, "{bytes:?}");
        }
        assert_eq!(told(&[b"6,1,18446744073709551615,-;\\x1b[2J\\xzz\\x\n"]).len(), 1);
        assert!(!told(&[b"6,18446744073709551615,1,-;\\x1b[2J\n"])[0].contains('\x1b'));
    }
}
