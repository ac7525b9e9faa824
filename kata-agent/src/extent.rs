//! A storage that is a part of a disk: where it is, out of the words of a request.
//!
//! Owns those words, and the name of such a part where the agent is an ordinary process and each is a file of
//! its own. Pure.

use kata_agent_proto::{Failed, FailureKind, storage};

use crate::order::Storage;

/// What positions and lengths are multiples of, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it begins, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) bytes: u64,
}

impl Extent {
    /// The extent that a storage is; none when it is a whole disk, or no disk.
    ///
    /// # Errors
    /// [`FailureKind::Invalid`] when only half of it is said, or what is said is no part of any disk.
    pub(crate) fn of(wanted: &Storage) -> Result<Option<Self>, Failed> {
        if wanted.driver != "blk" {
            return Ok(None);
        }
        let offset = number(wanted, storage::OFFSET)?;
        let bytes = number(wanted, storage::SIZE)?;
        match (offset, bytes) {
            (None, None) => Ok(None),
            (Some(offset), Some(bytes)) => match Self::new(offset, bytes) {
                Some(extent) => Ok(Some(extent)),
                None => Err(invalid(wanted, "no disk has such a part")),
            },
            _ => Err(invalid(wanted, "an extent has a place and a size")),
        }
    }

    fn new(offset: u64, bytes: u64) -> Option<Self> {
        let is_whole = |number: u64| number.is_multiple_of(SECTOR_BYTES);
        let is_sound =
            bytes > 0 && is_whole(offset) && is_whole(bytes) && offset.checked_add(bytes).is_some();
        is_sound.then_some(Self { offset, bytes })
    }

    /// The disk of a word `SERIAL` or `SERIAL@OFFSET+BYTES`, and the part of it; `None` when it is neither.
    pub(crate) fn parse(word: &str) -> Option<(String, Option<Self>)> {
        let Some((serial, part)) = word.split_once('@') else {
            return (!word.is_empty()).then(|| (word.to_owned(), None));
        };
        let (offset, bytes) = part.split_once('+')?;
        let extent = Self::new(offset.parse().ok()?, bytes.parse().ok()?)?;
        (!serial.is_empty()).then(|| (serial.to_owned(), Some(extent)))
    }

    /// What it is called beside the disks that are files.
    pub(crate) fn name(self, disk: &str) -> String {
        format!("{disk}@{}", self.offset)
    }
}

fn number(wanted: &Storage, option: &str) -> Result<Option<u64>, Failed> {
    let values = wanted.driver_options.iter();
    let mut values = values.filter_map(|given| given.strip_prefix(option));
    let value = values.next();
    if values.next().is_some() {
        return Err(invalid(wanted, &format!("{option} is there twice")));
    }
    let Some(value) = value else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(invalid(wanted, &format!("{option}{value} is no number"))),
    }
}

fn invalid(wanted: &Storage, reason: &str) -> Failed {
    Failed::new(
        FailureKind::Invalid,
        format!("storage of disk {:?}: {reason}", wanted.source),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(driver: &str, options: &[&str]) -> Result<Option<Extent>, Failed> {
        Extent::of(&Storage {
            driver: driver.into(),
            source: "shelf".into(),
            driver_options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Storage::default()
        })
    }

    #[test]
    fn an_extent_is_said_in_two_options() {
        let both = ["kata-rs.storage.offset=1048576", "kata-rs.storage.size=4096"];
        let extent = Extent {
            offset: 1 << 20,
            bytes: 4096,
        };
        assert_eq!(of("blk", &both), Ok(Some(extent)));
        assert_eq!(extent.name("shelf"), "shelf@1048576");
        assert_eq!(of("blk", &["another"]), Ok(None));
        assert_eq!(of("ephemeral", &both), Ok(None));
    }

    #[test]
    fn half_of_it_and_nonsense_are_refused() {
        let size = "kata-rs.storage.size=512";
        for options in [
            &[size][..],
            &["kata-rs.storage.offset=512"],
            &[size, "kata-rs.storage.offset=1"],
            &[size, "kata-rs.storage.offset=-512"],
            &[size, "kata-rs.storage.offset=1024", "kata-rs.storage.offset=512"],
            &["kata-rs.storage.offset=512", "kata-rs.storage.size=0"],
            &["kata-rs.storage.offset=512", "kata-rs.storage.size="],
            &[
                "kata-rs.storage.offset=512",
                "kata-rs.storage.size=18446744073709551104",
            ],
        ] {
            let refused = of("blk", options).expect_err("refused");
            assert_eq!(refused.kind, FailureKind::Invalid, "{options:?}");
            assert!(refused.subject.contains("\"shelf\""), "{refused}");
        }
    }
}
