//! The kernel's records from the agent's stream, and how many are missing between them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use kata_agent_proto::kernel_log::{self, KernelRecords};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use super::{KernelRecord, Log, LogSource, printable};

/// Bits of a priority that are the level; the rest is the facility (syslog(3)).
const LEVEL_BITS: u32 = 3;

/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Kernel {
    stream: UnixStream,
    records: KernelRecords,
    numbers: Numbers,
    ended: bool,
}

impl Kernel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            records: KernelRecords::default(),
            numbers: Numbers::default(),
            ended: false,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Log>> {
        loop {
            if let Some(record) = self.numbers.after.take() {
                return Poll::Ready(Some(Log::Kernel(record)));
            }
            if let Some(record) = self.records.next_record() {
                return Poll::Ready(Some(self.numbers.tell(record)));
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

/// Finds what is missing.
#[derive(Debug, Default)]
struct Numbers {
    /// The number that the next record has to have.
    expected: Option<u64>,
    /// A record that is told after what is missing before it.
    after: Option<KernelRecord>,
}

impl Numbers {
    fn tell(&mut self, record: kernel_log::KernelRecord) -> Log {
        let record = KernelRecord {
            level: (record.priority & ((1 << LEVEL_BITS) - 1))
                .try_into()
                .unwrap_or(0),
            facility: record.priority >> LEVEL_BITS,
            sequence: record.sequence,
            since_boot: record.since_boot,
            text: printable(&record.text),
        };
        let expected = self.expected.replace(record.sequence.saturating_add(1));
        // The first may have any number: that is what the kernel still has.
        let missing = record
            .sequence
            .saturating_sub(expected.unwrap_or(record.sequence));
        if missing == 0 {
            return Log::Kernel(record);
        }
        self.after = Some(record);
        Log::Lost {
            source: LogSource::Kernel,
            count: missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_counted_and_levels_are_told() {
        let (mut records, mut numbers) = (KernelRecords::default(), Numbers::default());
        records.feed(b"6,7,0,-;first\n30,8,1500000,-;\\x1b[2Jsecond\n6,20,0,-;later\n6,3,0,-;earlier\n");
        let mut told = Vec::new();
        while let Some(record) = records.next_record() {
            told.push(numbers.tell(record).to_string());
            told.extend(numbers.after.take().map(|record| Log::Kernel(record).to_string()));
        }
        assert_eq!(
            told,
            [
                "[    0.000000] <6> first",
                "[    1.500000] <6> [2Jsecond",
                "(11 records of the kernel are lost)",
                "[    0.000000] <6> later",
                "[    0.000000] <6> earlier"
            ]
        );
    }
}
