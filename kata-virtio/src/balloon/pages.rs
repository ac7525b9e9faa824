//! Which memory the driver speaks of: page numbers and buffers become sorted ranges of whole pages that
//! do not overlap.
//!
//! Pure; knows no guest memory. Ranges may be anywhere in the address space.

use vm_memory::GuestAddress;

use super::PAGE_BYTES;

/// Bytes of one page number in an inflate or deflate request (VIRTIO 1.2 §5.5.6).
pub(super) const NUMBER_BYTES: usize = 4;

/// Guest physical memory from `start` to before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// The pages of `page_bytes`, a power of two, that are in it as a whole; `None` if none is.
    fn whole_pages(self, page_bytes: u64) -> Option<Self> {
        let start = self.start.checked_next_multiple_of(page_bytes)?;
        let end = self.end - self.end % page_bytes;
        (start < end).then_some(Self { start, end })
    }
}

/// The pages with these numbers, little-endian each.
pub(super) fn of_numbers(numbers: &[u8], ranges: &mut Vec<Range>) {
    ranges.clear();
    let numbers = numbers.as_chunks::<NUMBER_BYTES>().0;
    ranges.extend(numbers.iter().map(|&number| {
        let start = u64::from(u32::from_le_bytes(number)) * PAGE_BYTES;
        Range {
            start,
            end: start + PAGE_BYTES,
        }
    }));
}

/// The memory of these buffers; what would be beyond the address space is left out.
pub(super) fn of_buffers(parts: &[(GuestAddress, usize)], ranges: &mut Vec<Range>) {
    ranges.clear();
    ranges.extend(parts.iter().map(|&(start, len)| Range {
        start: start.0,
        end: start.0.saturating_add(u64::try_from(len).unwrap_or(u64::MAX)),
    }));
}

/// Sorts, merges what overlaps or touches, and leaves whole pages of the host only. Merging comes first:
/// pages of the host that are larger than the balloon's arrive in parts.
pub(super) fn merge(ranges: &mut Vec<Range>, page_bytes: u64) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
    let mut whole = 0;
    for index in 0..ranges.len() {
        if let Some(range) = ranges[index].whole_pages(page_bytes) {
            ranges[whole] = range;
            whole += 1;
        }
    }
    ranges.truncate(whole);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bytes(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn neighbours_become_one_range() {
        let mut ranges = Vec::new();
        of_numbers(&bytes(&[7, 3, 5, 4, 3, 9]), &mut ranges);
        merge(&mut ranges, 4096);
        let pages: Vec<_> = ranges
            .iter()
            .map(|range| (range.start / 4096, range.end / 4096))
            .collect();
        assert_eq!(pages, [(3, 6), (7, 8), (9, 10)]);
    }

    #[test]
    fn pages_of_the_host_can_be_larger() {
        let mut ranges = Vec::new();
        of_numbers(
            &bytes(&[0x10, 0x11, 0x13, 0x12, 0x15, 0x16, 0x17, 0x18]),
            &mut ranges,
        );
        merge(&mut ranges, 4 * 4096);
        assert_eq!(
            ranges,
            [Range {
                start: 0x10000,
                end: 0x14000
            }]
        );
    }

    #[test]
    fn the_end_of_the_address_space_is_no_end_of_the_device() {
        let mut ranges = Vec::new();
        let parts = [(GuestAddress(!0x27ff), 0x4000), (GuestAddress(u64::MAX), 1)];
        of_buffers(&parts, &mut ranges);
        merge(&mut ranges, 4096);
        let expected = Range {
            start: !0x1fff,
            end: !0xfff,
        };
        assert_eq!(ranges, [expected]);
    }

    proptest! {
        /// The ranges are the pages, each once, in order, with a gap between any two.
        #[test]
        fn no_page_is_lost_or_invented(numbers in prop::collection::vec(prop_oneof![0u32..64, any::<u32>()], 0..300)) {
            let mut ranges = Vec::new();
            of_numbers(&bytes(&numbers), &mut ranges);
            merge(&mut ranges, 4096);
            let model: BTreeSet<u64> = numbers.iter().map(|&number| u64::from(number)).collect();
            let pages: Vec<u64> = ranges
                .iter()
                .flat_map(|range| range.start / 4096..range.end / 4096)
                .collect();
            prop_assert_eq!(pages, model.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        /// Every range is inside of what was said.
        #[test]
        fn no_byte_outside_is_given(parts in prop::collection::vec((0u64..0x40000, 0usize..0x8000), 0..40)) {
            let parts: Vec<_> = parts.into_iter().map(|(start, len)| (GuestAddress(start), len)).collect();
            let mut ranges = Vec::new();
            of_buffers(&parts, &mut ranges);
            merge(&mut ranges, 4096);
            for range in &ranges {
                prop_assert!(range.start % 4096 == 0 && range.end % 4096 == 0 && range.start < range.end);
                for page in (range.start..range.end).step_by(256) {
                    let said = parts.iter().any(|&(start, len)| {
                        start.0 <= page && page < start.0 + u64::try_from(len).unwrap()
                    });
                    prop_assert!(said, "{page:#x}");
                }
            }
        }
    }
}
