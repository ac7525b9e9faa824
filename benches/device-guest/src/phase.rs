//! The phases: what is measured, how much of it, and how guest and host speak of it.
//!
//! Pure. A control connection carries lines of the guest, and one byte of the host after each:
//!
//! ```text
//!  begin NAME                                       the host notes its counters
//!  end NAME REQUESTS BYTES NANOSECONDS MEDIAN       and again; MEDIAN of a request, 0 where they overlap
//!  done                                             everything that was read was what was written
//!  failed WHY
//! ```

use std::net::Ipv4Addr;

/// The host's address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The guest's.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The host listens here. The first byte of a connection is its [`Service`], the next eight an amount of
/// bytes (little-endian).
pub const PORT: u16 = 7077;

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 32 << 20;

/// Bytes of a sequential request.
pub const LARGE_BYTES: usize = 128 << 10;

/// Bytes of a random request.
pub const SMALL_BYTES: usize = 4 << 10;

/// Requests at once where they overlap.
pub const DEPTH: usize = 16;

/// Random requests of a phase, one after the other.
pub const REQUESTS: usize = 512;

/// Random requests of a phase, [`DEPTH`] at once.
pub const REQUESTS_AT_DEPTH: usize = 2048;

/// Bytes of a stream that is timed.
pub const STREAM_BYTES: u64 = 48 << 20;

/// Bytes of a write to a stream.
pub const CHUNK_BYTES: usize = 128 << 10;

/// Bytes each way of the streams that are compared byte by byte.
pub const CHECKED_BYTES: u64 = 8 << 20;

/// Round trips of one byte.
pub const ROUND_TRIPS: usize = 256;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// The lines above.
    Control = b'c',
    /// The guest sends the amount; the host answers with one byte when it has it.
    Take = b't',
    /// The host sends the amount.
    Give = b'g',
    /// Both at once, compared byte by byte.
    Both = b'b',
    /// The host sends every byte back.
    Echo = b'e',
}

impl Service {
    /// The service of a connection's first byte.
    #[must_use]
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Control, Self::Take, Self::Give, Self::Both, Self::Echo]
            .into_iter()
            .find(|service| *service as u8 == byte)
    }
}

/// Where the seed of a random phase's places comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Seed {
    /// One request after the other.
    Single = 1,
    /// Several at once; thread N adds N.
    Overlapping = 100,
}

/// What a phase came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Requests, round trips, or writes to a stream.
    pub requests: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// By the guest's clock.
    pub nanoseconds: u64,
    /// The middle of all requests' times; 0 where they overlap.
    pub median: u64,
}

/// A line of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A phase begins.
    Begin(String),
    /// It has ended.
    End(String, Outcome),
    /// All have.
    Done,
    /// Something went wrong.
    Failed(String),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begin(name) => write!(f, "begin {name}"),
            Self::End(name, outcome) => {
                let Outcome {
                    requests,
                    bytes,
                    nanoseconds,
                    median,
                } = outcome;
                write!(f, "end {name} {requests} {bytes} {nanoseconds} {median}")
            }
            Self::Done => write!(f, "done"),
            Self::Failed(why) => write!(f, "failed {}", why.replace('\n', " ")),
        }
    }
}

impl Line {
    /// Reads a line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (verb, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        match verb {
            "begin" => Some(Self::Begin(rest.to_owned())),
            "done" => Some(Self::Done),
            "failed" => Some(Self::Failed(rest.to_owned())),
            "end" => {
                let mut words = rest.split(' ');
                let name = words.next()?.to_owned();
                let mut number = || words.next()?.parse().ok();
                let outcome = Outcome {
                    requests: number()?,
                    bytes: number()?,
                    nanoseconds: number()?,
                    median: number()?,
                };
                Some(Self::End(name, outcome))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_wire() {
        let outcome = Outcome {
            requests: 1,
            bytes: 2,
            nanoseconds: 3,
            median: 4,
        };
        for line in [
            Line::Begin("a".to_owned()),
            Line::End("a".to_owned(), outcome),
            Line::Done,
            Line::Failed("it is broken".to_owned()),
        ] {
            assert_eq!(Line::parse(&format!("{line}\n")), Some(line));
        }
        assert_eq!(Line::parse("end a 1 2 3"), None);
        assert_eq!(Line::parse("hello"), None);
    }

    #[test]
    fn a_service_is_known_by_its_byte() {
        for service in [Service::Control, Service::Take, Service::Echo] {
            assert_eq!(Service::of(service as u8), Some(service));
        }
        assert_eq!(Service::of(0), None);
    }
}
