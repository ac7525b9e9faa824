//! What follows the file contents: blocks of large directories and links, then the inodes, then, in front of it
//! all, the superblock. Every address is fixed before the first of these bytes is written.

use std::collections::HashMap;
use std::io;

use super::dirents::{self, Entry};
use super::format::{
    COMPAT_CHECKSUM, COMPAT_MTIME, FORMAT_INLINE, FORMAT_PLAIN, MAGIC, SLOT_BYTES, Superblock,
};
use super::image::{BLOCK, Image, fits_inline};
use super::inode::{self, Inode};
use super::layout::Slots;
use super::superblock::first_block;
use super::{BLOCK_BYTES, Error, Summary};
use crate::tree::{Body, Node, NodeId, Time, Tree};
use std::path::PathBuf;

/// Writes everything but file contents, which are in the image already. `source` counts where the image hashes no
/// blocks.
pub(crate) fn write(mut image: Image<'_>, tree: &Tree, source: [u8; 32]) -> Result<Summary, Error> {
    let plan = Plan::new(tree, image.next_block());
    let blocks = plan.meta_block + plan.meta_blocks as u64;
    let limit = image.max_blocks();
    let blocks = u32::try_from(blocks)
        .ok()
        .filter(|blocks| u64::from(*blocks) <= limit);
    let too_large = || Error::TooLarge {
        path: PathBuf::from("."),
        limit: limit * BLOCK_BYTES,
    };
    let blocks = blocks.ok_or_else(too_large)?;
    plan.write_blocks(&mut image).map_err(Error::Write)?;
    plan.write_inodes(&mut image).map_err(Error::Write)?;
    let xattrs_left_out = image.xattrs_left_out();
    let size_bytes = image
        .finish(source, |digest| first_block(plan.superblock(digest, blocks)))
        .map_err(Error::Write)?;
    Ok(Summary {
        size_bytes,
        inodes: plan.placed.len() as u64,
        xattrs_left_out,
    })
}

/// All addresses.
struct Plan<'a> {
    tree: &'a Tree,
    build_time: Time,
    /// In the order in which the tree is walked; the root is the first.
    placed: Vec<Placed>,
    /// Index in `placed`, by node.
    places: HashMap<NodeId, usize>,
    meta_block: u64,
    meta_blocks: usize,
}

/// One inode and its place.
struct Placed {
    id: NodeId,
    inode: Inode,
    /// Byte offset from the first metadata block.
    offset: usize,
}

/// Where an inode's contents are.
struct Layout {
    size_bytes: u64,
    format: u16,
    tail_bytes: usize,
    /// Whole blocks that are still to be written: of a directory or a link.
    new_blocks: u64,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a Tree, next_block: u64) -> Self {
        let order = tree.walk();
        let build_time = most_common_time(tree, &order);
        let mut plan = Self {
            tree,
            build_time,
            placed: Vec::with_capacity(order.len()),
            places: HashMap::with_capacity(order.len()),
            meta_block: next_block,
            meta_blocks: 0,
        };
        let mut slots = Slots::new();
        for id in order {
            plan.place(id, &mut slots);
        }
        plan.meta_blocks = slots.blocks();
        plan
    }

    fn place(&mut self, id: NodeId, slots: &mut Slots) {
        let node = self.tree.node(id);
        let layout = layout(node);
        let is_compact = inode::is_compact(node, layout.size_bytes, self.build_time);
        let offset = slots.place(inode::stored_bytes(node, is_compact) + layout.tail_bytes);
        let address = match &node.body {
            Body::File(content) => content.first_block,
            Body::Character { major, minor } | Body::Block { major, minor } => {
                inode::device_number(*major, *minor)
            }
            // Checked against the limit before anything is written.
            _ => u32::try_from(self.meta_block).unwrap_or(u32::MAX),
        };
        self.meta_block += layout.new_blocks;
        let index = self.placed.len();
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let inode = Inode {
            number,
            size_bytes: layout.size_bytes,
            address,
            format: layout.format,
        };
        self.placed.push(Placed { id, inode, offset });
        self.places.insert(id, index);
    }

    fn nid(&self, id: NodeId) -> u64 {
        let offset = self.places.get(&id).map_or(0, |index| self.placed[*index].offset);
        offset as u64 / SLOT_BYTES
    }

    /// Contents of what the tree itself holds: directories and links.
    fn contents(&self, id: NodeId) -> Vec<u8> {
        match &self.tree.node(id).body {
            Body::Symlink(target) => target.to_vec(),
            Body::Directory(children) => {
                let entry = |name, id: NodeId| Entry {
                    name,
                    nid: self.nid(id),
                    file_type: inode::file_type(&self.tree.node(id).body),
                };
                let mut entries: Vec<_> = children.iter().map(|(name, id)| entry(&**name, *id)).collect();
                entries.push(entry(b".", id));
                entries.push(entry(b"..", self.tree.node(id).parent));
                entries.sort_unstable();
                dirents::contents(&entries)
            }
            _ => Vec::new(),
        }
    }

    /// The blocks between file contents and inodes.
    fn write_blocks(&self, image: &mut Image<'_>) -> io::Result<()> {
        for placed in &self.placed {
            let layout = layout(self.tree.node(placed.id));
            if layout.new_blocks > 0 {
                let contents = self.contents(placed.id);
                image.append(&contents[..contents.len() - layout.tail_bytes])?;
                image.pad()?;
            }
        }
        Ok(())
    }

    fn write_inodes(&self, image: &mut Image<'_>) -> io::Result<()> {
        let total_bytes = (self.meta_blocks * BLOCK) as u64;
        let mut by_offset: Vec<_> = self.placed.iter().collect();
        by_offset.sort_unstable_by_key(|placed| placed.offset);
        let mut position = 0;
        for (index, placed) in by_offset.iter().enumerate() {
            image.append(&vec![0; placed.offset - position])?;
            let bytes = self.inode_with_tail(placed, image)?;
            image.append(&bytes)?;
            position = placed.offset + bytes.len();
            if index % REPORT_INODES == 0 {
                image.report_metadata(position as u64, total_bytes, self.placed.len());
            }
        }
        image.append(&vec![0; self.meta_blocks * BLOCK - position])?;
        image.report_metadata(total_bytes, total_bytes, self.placed.len());
        Ok(())
    }

    fn inode_with_tail(&self, placed: &Placed, image: &Image<'_>) -> io::Result<Vec<u8>> {
        let node = self.tree.node(placed.id);
        let tail_bytes = layout(node).tail_bytes;
        let mut bytes = inode::encode(node, &placed.inode, self.build_time);
        match &node.body {
            Body::File(content) => {
                if let Some(place) = content.tail {
                    let start = bytes.len();
                    bytes.resize(start + tail_bytes, 0);
                    image.tail(place, &mut bytes[start..])?;
                }
            }
            _ if tail_bytes > 0 => {
                let contents = self.contents(placed.id);
                bytes.extend(&contents[contents.len() - tail_bytes..]);
            }
            _ => {}
        }
        Ok(bytes)
    }

    fn superblock(&self, digest: [u8; 32], blocks: u32) -> Superblock {
        Superblock {
            magic: MAGIC.into(),
            checksum: 0.into(),
            feature_compat: (COMPAT_CHECKSUM | COMPAT_MTIME).into(),
            block_bits: 12,
            extension_slots: 0,
            // The root is placed first, within the first blocks.
            root_nid: u16::try_from(self.nid(NodeId::ROOT)).unwrap_or_default().into(),
            inodes: (self.placed.len() as u64).into(),
            build_time: self.build_time.seconds.cast_unsigned().into(),
            build_time_nanoseconds: self.build_time.nanoseconds.into(),
            blocks: blocks.into(),
            meta_block: u32::try_from(self.meta_block).unwrap_or_default().into(),
            xattr_block: 0.into(),
            uuid: uuid(digest),
            volume_name: [0; 16],
            feature_incompat: 0.into(),
            unused: [0; 44],
        }
    }
}

const REPORT_INODES: usize = 4096;

/// RFC 9562 version 8: 122 bits of the digest.
fn uuid(digest: [u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The time that most nodes have, the earliest of several: those nodes can have short inodes.
fn most_common_time(tree: &Tree, order: &[NodeId]) -> Time {
    let mut counts: HashMap<Time, usize> = HashMap::new();
    for id in order {
        *counts.entry(tree.node(*id).metadata.mtime).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map(|(time, _)| time).unwrap_or_default()
}

fn layout(node: &Node) -> Layout {
    match &node.body {
        Body::File(content) => {
            let tail = if content.tail.is_some() {
                tail_of(content.size_bytes)
            } else {
                0
            };
            Layout::new(content.size_bytes, tail, 0)
        }
        Body::Symlink(target) => held(node, target.len()),
        Body::Directory(children) => held(node, directory_size(children.keys())),
        _ => Layout::new(0, 0, 0),
    }
}

/// Contents that the tree holds.
fn held(node: &Node, size: usize) -> Layout {
    let size_bytes = size as u64;
    let tail = tail_of(size_bytes);
    if fits_inline(node.metadata.xattrs.stored_bytes(), tail) {
        Layout::new(size_bytes, tail, size_bytes / BLOCK_BYTES)
    } else {
        Layout::new(size_bytes, 0, size_bytes.div_ceil(BLOCK_BYTES))
    }
}

impl Layout {
    fn new(size_bytes: u64, tail_bytes: usize, new_blocks: u64) -> Self {
        let format = if tail_bytes > 0 {
            FORMAT_INLINE
        } else {
            FORMAT_PLAIN
        };
        Self {
            size_bytes,
            format,
            tail_bytes,
            new_blocks,
        }
    }
}

fn tail_of(size_bytes: u64) -> usize {
    usize::try_from(size_bytes % BLOCK_BYTES).unwrap_or_default()
}

fn directory_size<'a>(names: impl Iterator<Item = &'a Box<[u8]>>) -> usize {
    let mut names: Vec<&[u8]> = names.map(|name| &**name).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    dirents::size(names.into_iter())
}
