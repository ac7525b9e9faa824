//! The records of a kernel's log as `/dev/kmsg` has them, from the stream of
//! [`Client::kernel_log`](crate::Client::kernel_log).
//!
//! `<priority>,<sequence>,<microseconds>,<flags>[,...];<text>\n`, and lines with a space in front that say more of the
//! record. What is not printable in the text is written as `\xNN` (Documentation/ABI/testing/dev-kmsg). Whoever writes
//! it is not trusted: memory is bounded, and what is no record is passed over.

use std::time::Duration;

/// Longest line in bytes that is kept until its end comes; the kernel's are shorter.
const LINE_BYTES_MAX: usize = 8 << 10;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRecord {
    /// The level in the lowest three bits, the facility above (syslog(3)).
    pub priority: u32,
    /// Its number: they are without gaps.
    pub sequence: u64,
    /// When, from the start of the kernel.
    pub since_boot: Duration,
    /// Its text; any bytes.
    pub text: Vec<u8>,
}

/// Bytes to records.
#[derive(Debug, Default)]
pub struct KernelRecords {
    /// Bytes that came and are not told.
    bytes: Vec<u8>,
    /// How many of them were looked at.
    position: usize,
}

impl KernelRecords {
    /// Takes in bytes. All records are to be taken before it is called again.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.position));
        // A line without an end is none.
        if self.bytes.len() > LINE_BYTES_MAX {
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next record that is complete.
    pub fn next_record(&mut self) -> Option<KernelRecord> {
        loop {
            if let Some(record) = parse(self.line()?) {
                return Some(record);
            }
        }
    }

    fn line(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.position..)?;
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        let begin = self.position;
        self.position += length + 1;
        self.bytes.get(begin..begin + length)
    }
}

/// One record; `None` for what says more of the one before, and for what is none.
fn parse(line: &[u8]) -> Option<KernelRecord> {
    let semicolon = line.iter().position(|byte| *byte == b';')?;
    let (head, text) = line.split_at(semicolon);
    let mut numbers = std::str::from_utf8(head).ok()?.split(',');
    let priority = numbers.next()?.parse().ok()?;
    let sequence = numbers.next()?.parse().ok()?;
    let microseconds = numbers.next()?.parse().ok()?;
    Some(KernelRecord {
        priority,
        sequence,
        since_boot: Duration::from_micros(microseconds),
        text: unescaped(text.get(1..)?),
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

    fn told(chunks: &[&[u8]]) -> Vec<(u32, u64, u128, String)> {
        let mut records = KernelRecords::default();
        let mut told = Vec::new();
        for chunk in chunks {
            records.feed(chunk);
            while let Some(record) = records.next_record() {
                let text = String::from_utf8_lossy(&record.text).into_owned();
                told.push((
                    record.priority,
                    record.sequence,
                    record.since_boot.as_micros(),
                    text,
                ));
            }
        }
        told
    }

    #[test]
    fn records_are_told_however_they_arrive() {
        let bytes = b"6,0,0,-;Linux version\n SUBSYSTEM=acpi\n DEVICE=+acpi\n4,1,1500000,c,more;a;b\\x0ac\\xc3\\xbc\n30,2,2000001,-;agent\n";
        let expected = [
            (6, 0, 0, "Linux version".to_owned()),
            (4, 1, 1_500_000, "a;b\nc\u{fc}".to_owned()),
            (30, 2, 2_000_001, "agent".to_owned()),
        ];
        assert_eq!(told(&[bytes]), expected);
        for at in 0..bytes.len() {
            assert_eq!(told(&[&bytes[..at], &bytes[at..]]), expected, "{at}");
        }
    }

    #[test]
    fn what_is_no_record_costs_nothing() {
        let mut records = KernelRecords::default();
        for _ in 0..1000 {
            records.feed(&[b'x'; 4096]);
            assert_eq!(records.next_record(), None);
            assert!(records.bytes.len() <= LINE_BYTES_MAX + 2 * 4096);
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
            assert_eq!(told(&[bytes]), [], "{bytes:?}");
        }
        assert_eq!(told(&[b"6,1,18446744073709551615,-;\\x1b[2J\\xzz\\x\n"]).len(), 1);
    }
}
