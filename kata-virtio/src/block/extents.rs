//! Which file answers where on a disk of extents. Pure: knows neither files nor requests.
//!
//! ```text
//!   0        1 MiB                 next                                      SHELF_BYTES
//!   ├─ label ─┼─ extent ─┤ nothing ├─ extent ─┤ nothing …                    │
//!     zeroes     a file's   error     a file's
//! ```
//!
//! Extents begin at multiples of [`UNIT`], in the order in which they were added. A place is never given out
//! twice: whatever a driver still remembers of one is of that extent alone.

use serde::{Deserialize, Serialize};

/// Size of a disk of extents, in bytes: room for a million files of 1 GiB, one after another. It is only a
/// number that the driver is told.
pub const SHELF_BYTES: u64 = 1 << 50;

/// What extents begin at multiples of, in bytes; and where the first begins, so that whoever looks for a
/// partition table at the beginning of the disk finds zeroes.
const UNIT: u64 = 1 << 20;

/// A part of the disk that a file answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size, in bytes; a multiple of a sector's.
    pub bytes: u64,
}

impl Extent {
    fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

/// A piece of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<F> {
    /// So many zero bytes.
    Zeroes(u64),
    /// So many bytes of a file.
    File {
        /// Which.
        file: F,
        /// From here on, in bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

/// See the module; `F` stands for a file.
#[derive(Debug)]
pub(super) struct Extents<F> {
    /// By their offsets, which rise.
    list: Vec<(Extent, F)>,
    /// Where the next one begins.
    next: u64,
}

impl<F: Clone> Extents<F> {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            next: UNIT,
        }
    }

    /// Extents that were on another disk, whose next one began at `next`; `None` when no disk could have had
    /// them.
    pub(super) fn restore(list: Vec<(Extent, F)>, next: u64) -> Option<Self> {
        let mut least = UNIT;
        for (extent, _) in &list {
            let sound = extent.offset.is_multiple_of(UNIT) && extent.offset >= least && extent.bytes > 0;
            least = extent.offset.checked_add(extent.bytes).filter(|_| sound)?;
        }
        let sound = next.is_multiple_of(UNIT) && (least..=SHELF_BYTES).contains(&next);
        sound.then_some(Self { list, next })
    }

    /// Where the next one begins.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Gives a file its place; `None` when no room is left.
    pub(super) fn add(&mut self, bytes: u64, file: F) -> Option<Extent> {
        let end = self.next.checked_add(bytes)?.checked_next_multiple_of(UNIT)?;
        let extent = Extent {
            offset: self.next,
            bytes,
        };
        (end <= SHELF_BYTES).then(|| {
            self.next = end;
            self.list.push((extent, file));
            extent
        })
    }

    /// Takes the extent away that begins there, if one does.
    pub(super) fn remove(&mut self, offset: u64) -> Option<F> {
        let index = self
            .list
            .binary_search_by_key(&offset, |(extent, _)| extent.offset);
        index.ok().map(|index| self.list.remove(index).1)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Extent> {
        self.list.iter().map(|(extent, _)| *extent)
    }

    /// The file that has all of these bytes, and where in it they begin.
    pub(super) fn whole(&self, offset: u64, bytes: u64) -> Option<(F, u64)> {
        let (extent, file) = self.before(offset)?;
        let within = offset - extent.offset;
        let left = extent.bytes.checked_sub(within)?;
        (bytes <= left).then(|| (file.clone(), within))
    }

    /// The pieces of a read, in their order; `None` when some of it is nobody's.
    pub(super) fn pieces(&self, offset: u64, bytes: u64) -> Option<Vec<Piece<F>>> {
        let (mut at, end) = (offset, offset.checked_add(bytes)?);
        let mut pieces = Vec::new();
        while at < end {
            let piece = self.piece(at, end - at)?;
            at += match piece {
                Piece::Zeroes(bytes) | Piece::File { bytes, .. } => bytes,
            };
            pieces.push(piece);
        }
        Some(pieces)
    }

    fn piece(&self, at: u64, most: u64) -> Option<Piece<F>> {
        if at < UNIT {
            return Some(Piece::Zeroes(most.min(UNIT - at)));
        }
        let (extent, file) = self.before(at)?;
        let left = extent.end().checked_sub(at).filter(|left| *left > 0)?;
        Some(Piece::File {
            file: file.clone(),
            offset: at - extent.offset,
            bytes: most.min(left),
        })
    }

    /// The last that begins there or before.
    fn before(&self, offset: u64) -> Option<&(Extent, F)> {
        let later = self.list.partition_point(|(extent, _)| extent.offset <= offset);
        self.list.get(later.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_is_never_given_out_twice() {
        let mut extents = Extents::new();
        let mut seen = Vec::new();
        for number in 0..100 {
            let extent = extents.add(512 + number * 70_000, number).unwrap();
            assert!(extent.offset.is_multiple_of(UNIT) && !seen.contains(&extent.offset));
            seen.push(extent.offset);
            assert_eq!(extents.remove(extent.offset), Some(number));
            assert_eq!(extents.remove(extent.offset), None);
        }
        assert_eq!(extents.iter().count(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut extents = Extents::new();
        assert_eq!(extents.add(SHELF_BYTES - UNIT + 512, 'a'), None);
        assert_eq!(extents.add(u64::MAX, 'a'), None);
        let all = Extent {
            offset: UNIT,
            bytes: SHELF_BYTES - UNIT,
        };
        assert_eq!(extents.add(all.bytes, 'a'), Some(all));
        assert_eq!(extents.add(512, 'b'), None);
        assert_eq!(
            extents.whole(SHELF_BYTES - 512, 512),
            Some(('a', all.bytes - 512))
        );
        assert_eq!(extents.whole(SHELF_BYTES - 512, 1024), None);
    }

    #[test]
    fn only_what_a_disk_could_have_had_is_restored() {
        let extent = |offset, bytes| (Extent { offset, bytes }, ());
        let restored = |list: &[_], next| Extents::restore(list.to_vec(), next);
        let sound = [extent(UNIT, UNIT + 512), extent(4 * UNIT, 512)];
        let same = restored(&sound, 5 * UNIT).unwrap();
        assert_eq!((same.next(), same.iter().count()), (5 * UNIT, 2));
        assert!(restored(&[], UNIT).is_some());
        for (list, next) in [
            (&[][..], 0),
            (&[], UNIT + 512),
            (&[], SHELF_BYTES + UNIT),
            (&sound[..], 4 * UNIT),
            (&[extent(0, 512)], 5 * UNIT),
            (&[extent(UNIT + 512, 512)], 5 * UNIT),
            (&[extent(UNIT, 0)], 5 * UNIT),
            (&[extent(UNIT, u64::MAX)], 5 * UNIT),
            (&[extent(UNIT, UNIT + 512), extent(2 * UNIT, 512)], 5 * UNIT),
        ] {
            assert!(restored(list, next).is_none(), "{list:?} {next}");
        }
    }

    proptest! {
        /// A disk of bytes that says of each MiB which file has how many of it is the same as the table.
        #[test]
        fn pieces_are_what_a_map_of_sectors_says(
            sizes in prop::collection::vec(1u64..6000, 1..6),
            gone in prop::collection::vec(any::<bool>(), 6),
            reads in prop::collection::vec((0u64..20_000, 1u64..5000), 1..20),
        ) {
            let mut extents = Extents::new();
            let mut map: Vec<Option<(usize, u64)>> = vec![None; 40_000];
            for (number, sectors) in sizes.iter().enumerate() {
                let extent = extents.add(sectors * 512, number).unwrap();
                if gone[number] {
                    prop_assert_eq!(extents.remove(extent.offset), Some(number));
                    continue;
                }
                for sector in 0..*sectors {
                    map[usize::try_from(extent.offset / 512 + sector).unwrap()] = Some((number, sector));
                }
            }
            for (first, count) in reads {
                let wanted: Vec<_> = (first..first + count).map(|sector| match map[usize::try_from(sector).unwrap()] {
                    _ if sector < UNIT / 512 => Some(None),
                    Some(place) => Some(Some(place)),
                    None => None,
                }).collect();
                let found = extents.pieces(first * 512, count * 512).map(|pieces| pieces.into_iter().flat_map(|piece| match piece {
                    Piece::Zeroes(bytes) => vec![None; usize::try_from(bytes / 512).unwrap()],
                    Piece::File { file, offset, bytes } => (0..bytes / 512).map(|sector| Some((file, offset / 512 + sector))).collect(),
                }).collect::<Vec<_>>());
                prop_assert_eq!(found.clone(), wanted.iter().copied().collect::<Option<Vec<_>>>());
                if let Some((file, offset)) = extents.whole(first * 512, count * 512) {
                    prop_assert_eq!(found.and_then(|found| found[0]), Some((file, offset / 512)));
                }
            }
        }
    }
}
