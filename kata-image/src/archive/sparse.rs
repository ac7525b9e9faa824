//! Maps of sparse files: GNU's old form (in the header and in blocks after it) and PAX form 1.0 (in front of
//! the data). The older PAX forms 0.0 and 0.1 are refused by their caller.

use tar::GnuSparseHeader;

use super::pax::decimal;

/// Pieces of a file that are stored; what lies between them is zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Map {
    segments: Vec<Segment>,
    stored_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The most pieces that a map may have.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

impl Map {
    /// A file that is stored whole.
    pub(super) fn whole(bytes: u64) -> Self {
        Self {
            segments: vec![Segment { offset: 0, bytes }],
            stored_bytes: bytes,
        }
    }

    /// Appends a piece. `None` when it is out of order, overflows, or is one too many.
    pub(super) fn push(&mut self, offset: u64, bytes: u64) -> Option<()> {
        let end = self.segments.last().map_or(0, |last| last.offset + last.bytes);
        offset.checked_add(bytes)?;
        if offset < end || self.segments.len() >= MAX_SEGMENTS {
            return None;
        }
        self.stored_bytes = self.stored_bytes.checked_add(bytes)?;
        self.segments.push(Segment { offset, bytes });
        Some(())
    }

    /// Appends the used entries of a GNU header.
    pub(super) fn push_headers(&mut self, headers: &[GnuSparseHeader]) -> Option<()> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            self.push(header.offset().ok()?, header.length().ok()?)?;
        }
        Some(())
    }

    /// Whether the pieces lie inside a file of this size and hold exactly what the archive stores.
    pub(super) fn fits(&self, size_bytes: u64, stored_bytes: u64) -> bool {
        let end = self.segments.last().map_or(0, |last| last.offset + last.bytes);
        end <= size_bytes && self.stored_bytes == stored_bytes
    }

    pub(super) fn into_segments(self) -> std::vec::IntoIter<Segment> {
        self.segments.into_iter()
    }
}

/// The map in front of the data, PAX form 1.0: decimal numbers, each ended by a newline: how many pieces, then
/// offset and size of each; padded to a block.
#[derive(Debug, Default)]
pub(super) struct FrontMap {
    digits: Vec<u8>,
    pieces: Option<usize>,
    offset: Option<u64>,
    map: Map,
}

impl FrontMap {
    /// Takes the next block. `Some(true)` when the map is complete, `None` when it is malformed.
    pub(super) fn feed(&mut self, block: &[u8]) -> Option<bool> {
        for byte in block {
            if self.is_complete() {
                return Some(true);
            }
            match byte {
                b'\n' => self.number()?,
                digit if self.digits.len() < 20 => self.digits.push(*digit),
                _ => return None,
            }
        }
        Some(self.is_complete())
    }

    fn number(&mut self) -> Option<()> {
        let digits = std::mem::take(&mut self.digits);
        let number: u64 = decimal(&digits).filter(|_| !digits.is_empty())?;
        match (self.pieces, self.offset.take()) {
            (None, _) => self.pieces = Some(usize::try_from(number).ok().filter(|n| *n <= MAX_SEGMENTS)?),
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.map.push(offset, number)?,
        }
        Some(())
    }

    fn is_complete(&self) -> bool {
        self.pieces == Some(self.map.segments.len())
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_must_be_in_order_and_in_bounds() {
        let mut map = Map::default();
        assert_eq!(map.push(10, 5), Some(()));
        assert_eq!(map.push(14, 1), None);
        assert_eq!(map.push(u64::MAX, 2), None);
        assert_eq!(map.push(15, 1), Some(()));
        assert!(map.fits(16, 6));
        assert!(!map.fits(15, 6));
        assert!(!map.fits(16, 7));
    }

    #[test]
    fn a_map_in_front_of_the_data_may_span_blocks() {
        let mut front = FrontMap::default();
        assert_eq!(front.feed(b"2\n0\n5"), Some(false));
        assert_eq!(front.feed(b"12\n4096\n10\n\0\0"), Some(true));
        assert!(front.into_map().fits(4106, 522));
        assert_eq!(FrontMap::default().feed(b"x\n"), None);
        assert_eq!(FrontMap::default().feed(b"\n"), None);
        assert_eq!(FrontMap::default().feed(b"99999999\n"), None);
        assert_eq!(FrontMap::default().feed(b"0\n"), Some(true));
    }
}
