//! What is on the disk and in the streams: every sector says where it belongs and who wrote it.
//!
//! Pure. A sector that is lost, doubled, shifted or mixed with another is found.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// What a disk's or stream's sectors were last written by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Author {
    /// The host, before the guest starts.
    Host = 1,
    /// The guest's sequential writes.
    Sequential = 2,
    /// The guest's random writes.
    Random = 3,
    /// A stream that the guest sends.
    GuestStream = 4,
    /// A stream that the host sends.
    HostStream = 5,
}

/// A sector that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// Its number.
    pub sector: u64,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sector {} has other bytes than were written", self.sector)
    }
}

impl std::error::Error for Wrong {}

/// Makes `bytes`, whole sectors, what this author writes from sector `first` on.
pub fn fill(bytes: &mut [u8], first: u64, author: Author) {
    for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
        bytes.copy_from_slice(&BODY);
        stamp_one(bytes, sector, author);
    }
}

/// Makes sectors that were [`fill`]ed once those from `first` on: cheap enough for a loop that is timed.
pub fn stamp(bytes: &mut [u8], first: u64, author: Author) {
    for (sector, bytes) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
        stamp_one(bytes, sector, author);
    }
}

/// Whether every byte is as [`fill`] made it.
///
/// # Errors
/// The first sector that is not.
pub fn check(bytes: &[u8], first: u64, author: Author) -> Result<(), Wrong> {
    check_stamps(bytes, first, author)?;
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
        if bytes.get(TAG_BYTES..) != BODY.get(TAG_BYTES..) {
            return Err(Wrong { sector });
        }
    }
    Ok(())
}

/// Whether every sector is in its place: as [`check`], without the bytes between the stamps.
///
/// # Errors
/// The first sector that is not.
pub fn check_stamps(bytes: &[u8], first: u64, author: Author) -> Result<(), Wrong> {
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
        if bytes.get(..TAG_BYTES) != Some(tag(sector, author).as_slice()) {
            return Err(Wrong { sector });
        }
    }
    Ok(())
}

/// Random places on a disk: the same ones for guest and host (splitmix64).
#[derive(Debug, Clone)]
pub struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    /// Places of blocks below `blocks`, another sequence for each seed.
    #[must_use]
    pub fn new(seed: u64, blocks: u64) -> Self {
        Self { state: seed, blocks }
    }
}

impl Iterator for Places {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(self.blocks)
    }
}

const TAG_BYTES: usize = 8;

/// Sector and author, as the first bytes of a sector.
fn tag(sector: u64, author: Author) -> [u8; TAG_BYTES] {
    (sector << 8 | u64::from(author as u8)).to_le_bytes()
}

fn stamp_one(bytes: &mut [u8], sector: u64, author: Author) {
    if let Some(start) = bytes.get_mut(..TAG_BYTES) {
        start.copy_from_slice(&tag(sector, author));
    }
}

/// What is in a sector beside its tag: neighbours differ, so bytes that are shifted are found.
static BODY: [u8; SECTOR_BYTES] = body();

const fn body() -> [u8; SECTOR_BYTES] {
    let mut body = [0; SECTOR_BYTES];
    let mut at = 0;
    while at < SECTOR_BYTES {
        let [low, high, ..] = at.to_le_bytes();
        body[at] = low.wrapping_mul(7) ^ high.wrapping_mul(113) ^ 0x5a;
        at += 1;
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_right_and_nothing_else_is() {
        let mut bytes = vec![0; 4 * SECTOR_BYTES];
        fill(&mut bytes, 7, Author::Host);
        assert_eq!(check(&bytes, 7, Author::Host), Ok(()));
        assert_eq!(check(&bytes, 8, Author::Host), Err(Wrong { sector: 8 }));
        assert_eq!(check(&bytes, 7, Author::Random), Err(Wrong { sector: 7 }));
        bytes[2 * SECTOR_BYTES + 100] ^= 1;
        assert_eq!(check(&bytes, 7, Author::Host), Err(Wrong { sector: 9 }));
        assert_eq!(check_stamps(&bytes, 7, Author::Host), Ok(()));
        bytes.copy_within(SECTOR_BYTES + 1.., SECTOR_BYTES);
        assert_eq!(check(&bytes, 7, Author::Host), Err(Wrong { sector: 8 }));
        fill(&mut bytes, 7, Author::Host);
        stamp(&mut bytes, 90, Author::Random);
        assert_eq!(check(&bytes, 90, Author::Random), Ok(()));
    }

    #[test]
    fn places_are_within_the_disk_and_repeat() {
        let places: Vec<u64> = Places::new(1, 100).take(50).collect();
        assert_eq!(places, Places::new(1, 100).take(50).collect::<Vec<_>>());
        assert!(places.iter().all(|place| *place < 100));
        assert!(places.windows(2).any(|pair| pair[0] > pair[1]));
        assert_eq!(Places::new(1, 0).next(), None);
    }
}
