//! PAX extended headers (POSIX.1-2017 pax, "pax Extended Header"): `<length> <key>=<value>\n`, where the
//! value is any bytes.

use std::collections::BTreeMap;

use crate::tree::Time;

/// What a header for all members that follow may say of them. Every member starts with a copy, so that extended
/// attributes have no place here: an archive of some megabytes would cost as much for each of a million members.
const COMMON: [&[u8]; 6] = [b"gid", b"linkpath", b"mtime", b"path", b"size", b"uid"];
/// The longest value of these: more than any path that Linux accepts.
const COMMON_BYTES_MAX: usize = 8 << 10;

/// Records by key; the last of one key counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of all keys and values.
    bytes: u64,
}

impl Records {
    /// Adds the records of one extended header. `None` when they do not follow the grammar.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes)?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
            // An empty value takes a record back, but an extended attribute may well be empty.
            self.remove(key);
            if !value.is_empty() || key.starts_with(b"SCHILY.xattr.") {
                self.bytes += (key.len() + value.len()) as u64;
                self.values.insert(key.to_vec(), value.to_vec());
            }
            bytes = rest;
        }
        Some(())
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(value) = self.values.remove(key) {
            self.bytes -= (key.len() + value.len()) as u64;
        }
    }

    /// Drops what a header for all members is not heeded for. Other engines heed nothing of such a header.
    pub(super) fn keep_what_may_be_common(&mut self) {
        self.values
            .retain(|key, value| COMMON.contains(&key.as_slice()) && value.len() <= COMMON_BYTES_MAX);
        self.bytes = self
            .values
            .iter()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum();
    }

    /// Bytes of all keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// The keys with this prefix, without it, and their values.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let stripped = move |(key, value): (&'a Vec<u8>, &'a Vec<u8>)| {
            key.strip_prefix(prefix.as_bytes())
                .map(|name| (name, value.as_slice()))
        };
        self.values.iter().filter_map(stripped)
    }
}

/// Splits off `<length> <key>=<value>\n` and returns `<key>=<value>` and what follows.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(MAX_DIGITS + 1).position(|byte| *byte == b' ')?;
    let length: usize = decimal(bytes.get(..space)?)?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

const MAX_DIGITS: usize = 20;

/// An unsigned number of digits only.
pub(super) fn decimal<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
pub(super) fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds: i64 = decimal(parts.next().filter(|digits| !digits.is_empty())?)?;
    let nanoseconds = parts.next().map_or(Some(0), nanoseconds)?;
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn nanoseconds(fraction: &[u8]) -> Option<u32> {
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    Some(digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_any_byte() {
        let mut records = Records::default();
        records
            .extend(b"20 SCHILY.xattr.u=\n\n12 path=a\xffb\n")
            .expect("records");
        assert_eq!(
            records.with_prefix("SCHILY.xattr.").collect::<Vec<_>>(),
            [(&b"u"[..], &b"\n"[..])]
        );
        assert_eq!(records.get("path"), Some(&b"a\xffb"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"6 ab=",
            b"4 ab\n",
            b"+6 a=b\n",
            b"0 a=b\n",
            b"3 \n",
        ] {
            assert_eq!(Records::default().extend(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_deletes() {
        let mut records = Records::default();
        records.extend(b"6 a=1\n6 a=2\n6 b=3\n").expect("records");
        assert_eq!(records.get("a"), Some(&b"2"[..]));
        records.extend(b"5 b=\n").expect("records");
        assert_eq!(records.get("b"), None);
        records.extend(b"19 SCHILY.xattr.u=\n").expect("records");
        assert_eq!(records.get("SCHILY.xattr.u"), Some(&b""[..]));
    }

    #[test]
    fn what_is_common_to_all_members_is_little() {
        let mut records = Records::default();
        let long = vec![b'x'; COMMON_BYTES_MAX + 1];
        records.values.insert(b"path".to_vec(), long);
        records
            .extend(b"6 a=1\n11 mtime=7\n20 SCHILY.xattr.u=\n\n21 GNU.sparse.size=1\n")
            .expect("records");
        records.keep_what_may_be_common();
        assert_eq!(records.get("mtime"), Some(&b"7"[..]));
        assert_eq!((records.values.len(), records.bytes()), (1, 6));
    }

    #[test]
    fn bytes_are_counted_as_records_come_and_go() {
        let mut records = Records::default();
        records.extend(b"6 a=1\n8 a=222\n6 b=3\n").expect("records");
        assert_eq!(records.bytes(), 6);
        records.extend(b"5 a=\n").expect("records");
        assert_eq!(records.bytes(), 2);
    }

    #[test]
    fn times_are_exact_and_round_down() {
        let check = |text: &str, expected: Option<(i64, u32)>| {
            let found = time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(found, expected, "{text}");
        };
        check("1700000000", Some((1_700_000_000, 0)));
        check("1.5", Some((1, 500_000_000)));
        check("1.1234567899", Some((1, 123_456_789)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-3", Some((-3, 0)));
        check("", None);
        check("1e9", None);
        check("1.x", None);
        check("99999999999999999999", None);
    }
}
