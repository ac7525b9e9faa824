//! What a guest says about its memory (VIRTIO 1.2 §5.5.6.3, §5.5.6.4).
//!
//! Owns the format; knows no queue.

/// Bytes of an entry: a tag of two and a value of eight, little-endian, packed.
const ENTRY_BYTES: usize = 10;

/// Entries that are looked at. Linux 6.12 sends sixteen.
const MOST_ENTRIES: usize = 64;

/// Bytes that are looked at.
pub(super) const MOST_BYTES: usize = ENTRY_BYTES * MOST_ENTRIES;

macro_rules! statistics {
    ($($(#[$doc:meta])* $tag:literal => $name:ident),+ $(,)?) => {
        /// The guest's own statistics at one moment: its claims, which nothing here verifies. `None`: it did
        /// not say.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Statistics { $($(#[$doc])* pub $name: Option<u64>,)+ }

        impl Statistics {
            fn set(&mut self, tag: u16, value: u64) {
                match tag {
                    $($tag => self.$name = Some(value),)+
                    // A driver may know more than we do (§5.5.6.3.1).
                    _ => {}
                }
            }
        }
    };
}

statistics! {
    /// Bytes swapped in since its boot.
    0 => swapped_in_bytes,
    /// Bytes swapped out since its boot.
    1 => swapped_out_bytes,
    /// Page faults since its boot that needed a disk.
    2 => major_faults,
    /// Page faults since its boot that did not.
    3 => minor_faults,
    /// Bytes of memory in no use at all.
    4 => free_bytes,
    /// Bytes of memory that it has.
    5 => total_bytes,
    /// Bytes that new programs could have without swapping.
    6 => available_bytes,
    /// Bytes of caches that can be given up at once.
    7 => cache_bytes,
    /// Huge pages allocated since its boot.
    8 => huge_page_allocations,
    /// Huge pages since its boot that could not be had.
    9 => huge_page_failures,
    /// Times since its boot that a process was killed for memory (Linux 6.12).
    10 => out_of_memory_kills,
    /// Times since its boot that an allocation had to wait (Linux 6.12).
    11 => allocation_stalls,
    /// Pages scanned for reclaim in the background since its boot (Linux 6.12).
    12 => background_scanned_pages,
    /// Pages scanned for reclaim by who needed memory since its boot (Linux 6.12).
    13 => direct_scanned_pages,
    /// Pages reclaimed in the background since its boot (Linux 6.12).
    14 => background_reclaimed_pages,
    /// Pages reclaimed by who needed memory since its boot (Linux 6.12).
    15 => direct_reclaimed_pages,
}

impl Statistics {
    /// Reads entries until there is no whole one left. Of two with one tag the later counts.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for [a, b, value @ ..] in bytes.as_chunks::<ENTRY_BYTES>().0.iter().take(MOST_ENTRIES) {
            statistics.set(u16::from_le_bytes([*a, *b]), u64::from_le_bytes(*value));
        }
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn every_tag_has_its_field() {
        let bytes: Vec<u8> = (0..16).flat_map(|tag| entry(tag, u64::from(tag) + 100)).collect();
        let statistics = Statistics::parse(&bytes);
        assert_eq!(statistics.swapped_in_bytes, Some(100));
        assert_eq!(statistics.free_bytes, Some(104));
        assert_eq!(statistics.available_bytes, Some(106));
        assert_eq!(statistics.direct_reclaimed_pages, Some(115));
    }

    #[test]
    fn unknown_tags_and_cut_entries_are_left_out() {
        let mut bytes = entry(4, 1);
        bytes.extend(entry(0x7fff, 2));
        bytes.extend(entry(4, 3));
        bytes.extend(&entry(5, 4)[..9]);
        let expected = Statistics {
            free_bytes: Some(3),
            ..Statistics::default()
        };
        assert_eq!(Statistics::parse(&bytes), expected);
        assert_eq!(Statistics::parse(&[]), Statistics::default());
    }
}
