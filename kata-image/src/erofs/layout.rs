//! Where inodes lie: each in the block with the least room that is enough for it, the root in front.

use std::collections::BTreeSet;

use super::format::SLOT_BYTES;
use super::image::BLOCK;

/// Hands out room in the metadata blocks.
#[derive(Debug)]
pub(super) struct Slots {
    /// Room left and block, of every block with room.
    open: BTreeSet<(usize, usize)>,
    blocks: usize,
}

const SLOT: usize = 32;
const _: () = assert!(SLOT as u64 == SLOT_BYTES);

impl Slots {
    /// The first slot stays empty: inode number 0 would make `readdir` hide the entry.
    pub(super) fn new() -> Self {
        Self {
            open: BTreeSet::from([(BLOCK - SLOT, 0)]),
            blocks: 1,
        }
    }

    /// Byte offset of room for `bytes`. What fits into a block does not cross into another.
    pub(super) fn place(&mut self, bytes: usize) -> usize {
        let bytes = bytes.next_multiple_of(SLOT);
        let found = self.open.range((bytes, 0)..).next().copied();
        if let Some((room, block)) = found.filter(|_| bytes <= BLOCK) {
            self.open.remove(&(room, block));
            self.reopen(room - bytes, block);
            return (block + 1) * BLOCK - room;
        }
        let start = self.blocks;
        self.blocks += bytes.div_ceil(BLOCK);
        self.reopen(self.blocks * BLOCK - start * BLOCK - bytes, self.blocks - 1);
        start * BLOCK
    }

    fn reopen(&mut self, room: usize, block: usize) {
        if room >= SLOT {
            self.open.insert((room, block));
        }
    }

    /// Blocks in all. The last has room: fsck.erofs 1.5 reads an attribute header behind every inode, also where
    /// there is none, and takes the end of the image for corruption.
    pub(super) fn blocks(&self) -> usize {
        let last_has_room = self.open.iter().any(|(_, block)| block + 1 == self.blocks);
        if last_has_room {
            self.blocks
        } else {
            self.blocks + 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_tightest_gap_is_filled_first() {
        let mut slots = Slots::new();
        assert_eq!(slots.place(64), 32);
        assert_eq!(slots.place(4032), 4096);
        assert_eq!(slots.place(64), 8128);
        assert_eq!(slots.place(64), 96);
        assert_eq!(slots.place(5000), 8192);
        assert_eq!(slots.place(3168), 8192 + 5024);
        assert_eq!(slots.blocks(), 5);
    }

    #[test]
    fn the_last_block_has_room() {
        let mut slots = Slots::new();
        assert_eq!(slots.blocks(), 1);
        slots.place(4096 - 32);
        assert_eq!(slots.blocks(), 2);
        slots.place(32);
        assert_eq!(slots.blocks(), 2);
    }

    proptest! {
        #[test]
        fn nothing_overlaps_or_crosses_a_block(sizes in prop::collection::vec(32_usize..9000, 1..200)) {
            let mut slots = Slots::new();
            let mut placed: Vec<_> = sizes.iter().map(|size| (slots.place(*size), *size)).collect();
            for (start, size) in &placed {
                prop_assert_eq!(start % SLOT, 0);
                prop_assert!(*size > BLOCK || start / BLOCK == (start + size - 1) / BLOCK);
                prop_assert!(start + size <= slots.blocks() * BLOCK);
            }
            placed.sort_unstable();
            prop_assert!(placed.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            prop_assert!(placed[0].0 >= SLOT);
        }
    }
}
