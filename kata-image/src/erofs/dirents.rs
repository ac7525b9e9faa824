//! Contents of directories: blocks, each with an array of entries followed by their names. Names are in the
//! order of their bytes over all blocks, `.` and `..` among them.

use zerocopy::IntoBytes;

use super::format::{DIRENT_BYTES, Dirent};
use super::image::BLOCK;

/// One entry: what it is called, where its inode is, and the type that `readdir` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Bytes of a directory with these names, which are in order.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> usize {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT_BYTES + name.len();
        if used + needed > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += needed;
    }
    blocks * BLOCK + used
}

/// The contents of a directory with these entries, which are in order; as long as [`size`] says.
pub(super) fn contents(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut contents = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let (block, after) = rest.split_at(entries_in_block(rest));
        contents.resize(contents.len().next_multiple_of(BLOCK), 0);
        append_block(&mut contents, block);
        rest = after;
    }
    contents
}

fn entries_in_block(entries: &[Entry<'_>]) -> usize {
    let ends = entries.iter().scan(0, |used, entry| {
        *used += DIRENT_BYTES + entry.name.len();
        Some(*used)
    });
    ends.take_while(|end| *end <= BLOCK).count()
}

fn append_block(contents: &mut Vec<u8>, entries: &[Entry<'_>]) {
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        let dirent = Dirent {
            nid: entry.nid.into(),
            // Less than a block.
            name_offset: u16::try_from(name_offset).unwrap_or(u16::MAX).into(),
            file_type: entry.file_type,
            reserved: 0,
        };
        contents.extend(dirent.as_bytes());
        name_offset += entry.name.len();
    }
    for entry in entries {
        contents.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_directory_is_entries_then_names() {
        let entry = |name, nid| Entry {
            name,
            nid,
            file_type: 2,
        };
        let contents = contents(&[entry(b".", 1), entry(b"..", 2), entry(b"abc", 0x0102)]);
        let expected = "0100000000000000 2400 02 00\
                        0200000000000000 2500 02 00\
                        0201000000000000 2700 02 00\
                        2e 2e2e 616263";
        assert_eq!(hex::encode(contents), expected.replace(' ', ""));
    }

    #[test]
    fn the_size_is_known_before_the_contents() {
        for (count, length) in [
            (1, 1),
            (100, 30),
            (97, 30),
            (98, 30),
            (1000, 255),
            (16, 244),
            (17, 244),
        ] {
            let names: Vec<_> = (0..count).map(|index| format!("{index:0length$}")).collect();
            let entries = names.iter().map(|name| Entry {
                name: name.as_bytes(),
                nid: 9,
                file_type: 1,
            });
            let contents = contents(&entries.collect::<Vec<_>>());
            assert_eq!(
                contents.len(),
                size(names.iter().map(String::as_bytes)),
                "{count} of {length}"
            );
        }
    }
}
