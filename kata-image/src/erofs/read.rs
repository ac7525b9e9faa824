//! Reading images of our own making back: to a tree, with contents that stay in the image. Owns the way through
//! directories; what one inode says is for [`read_inode`](super::read_inode).
//!
//! An image lies in a cache directory, where it may be damaged, or have been made by somebody who means harm. Whatever
//! it holds, reading ends: every directory is looked at once, every address is checked against the image's size, and
//! what is taken in counts towards the [`Limits`]. Compressed, chunked and packed contents, which we do not write, are
//! refused by name.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::read_inode::{Kind, StoredInode};
use super::superblock::{Superblock, SuperblockError};
use super::{BLOCK_BYTES, Contents, Limits, format};
use crate::tree::{Body, Content, NodeId, Time, Tree};

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Its superblock is not one.
    #[error("its superblock is not valid")]
    Superblock(#[source] SuperblockError),
    /// It cannot be read.
    #[error("cannot read at byte {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It uses something of the format that images made here do not use.
    #[error("it uses {feature}, which images made here do not use")]
    Unsupported {
        /// What.
        feature: &'static str,
    },
    /// An inode contradicts itself or the image.
    #[error("inode {nid}: {what}")]
    Inode {
        /// Number of the inode in units of 32 bytes.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It holds more than [`Limits`] allow.
    #[error("it holds more than {limit} {what}")]
    TooMuch {
        /// The limit.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

/// An image that is being read.
pub(super) struct Reader<'a> {
    image: &'a File,
    pub(super) size_bytes: u64,
    pub(super) meta_offset: u64,
    pub(super) xattr_offset: u64,
    pub(super) build_time: Time,
    root_nid: u64,
    uuid: [u8; 16],
}

impl<'a> Reader<'a> {
    fn new(image: &'a File) -> Result<Self, ReadError> {
        let (superblock, stored) = Superblock::read_stored(image).map_err(ReadError::Superblock)?;
        let unsupported = |feature| Err(ReadError::Unsupported { feature });
        if superblock.block_bytes != BLOCK_BYTES {
            return unsupported("blocks of another size than 4096 bytes");
        }
        if stored.feature_incompat.get() != 0 {
            return unsupported("incompatible features");
        }
        Ok(Self {
            image,
            size_bytes: superblock.blocks * BLOCK_BYTES,
            meta_offset: u64::from(stored.meta_block.get()) * BLOCK_BYTES,
            xattr_offset: u64::from(stored.xattr_block.get()) * BLOCK_BYTES,
            build_time: Time {
                seconds: stored.build_time.get().cast_signed(),
                nanoseconds: stored.build_time_nanoseconds.get(),
            },
            root_nid: u64::from(stored.root_nid.get()),
            uuid: superblock.uuid,
        })
    }

    /// Fills the buffer from inside the image; `None` when it leads outside.
    pub(super) fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<Option<()>, ReadError> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return Ok(None);
        }
        let read = self.image.read_exact_at(buffer, offset);
        read.map(Some).map_err(|source| ReadError::Io { offset, source })
    }

    /// All contents of something small, at most `most` bytes.
    fn contents(&self, inode: &StoredInode, most: u64) -> Result<Vec<u8>, ReadError> {
        let size = usize::try_from(inode.size_bytes)
            .ok()
            .filter(|_| inode.size_bytes <= most);
        let size = size.ok_or_else(|| inode.error("it is larger than anything of its kind"))?;
        let mut contents = vec![0; size];
        let mut file = StoredFile::new(self.image, inode.content);
        let read = file.read_exact(&mut contents);
        read.map_err(|source| ReadError::Io {
            offset: u64::from(inode.content.first_block) * BLOCK_BYTES,
            source,
        })?;
        Ok(contents)
    }
}

/// The most that a directory may have: eight million entries with names of ordinary length.
const MAX_DIRECTORY_BYTES: u64 = 512 << 20;
const MAX_TARGET_BYTES: u64 = 4095;

/// What an image holds, with contents that are where the image has them, and its UUID.
pub(crate) fn read_tree(image: &File, limits: &Limits) -> Result<(Tree, [u8; 16]), ReadError> {
    let reader = Reader::new(image)?;
    let mut walk = Walk {
        reader: &reader,
        limits,
        tree: Tree::new(),
        directories: HashSet::new(),
        hard_links: HashMap::new(),
        pending: Vec::new(),
    };
    let root = StoredInode::read(&reader, reader.root_nid)?;
    if root.kind != Kind::Directory {
        return Err(root.error("the root is no directory"));
    }
    walk.tree.set_root(root.metadata.clone());
    walk.pending.push((root, NodeId::ROOT));
    while let Some((inode, id)) = walk.pending.pop() {
        walk.directory(&inode, id)?;
    }
    Ok((walk.tree, reader.uuid))
}

struct Walk<'a> {
    reader: &'a Reader<'a>,
    limits: &'a Limits,
    tree: Tree,
    /// Directories that have a name already.
    directories: HashSet<u64>,
    /// Inodes with several names.
    hard_links: HashMap<u64, NodeId>,
    pending: Vec<(StoredInode, NodeId)>,
}

impl Walk<'_> {
    fn directory(&mut self, inode: &StoredInode, id: NodeId) -> Result<(), ReadError> {
        if !self.directories.insert(inode.nid) {
            return Err(inode.error("a directory has two names"));
        }
        let contents = self.reader.contents(inode, MAX_DIRECTORY_BYTES)?;
        let mut last: &[u8] = b"";
        for block in contents.chunks(super::image::BLOCK) {
            for entry in entries(inode, block)? {
                let (name, nid) = entry?;
                if name <= last {
                    return Err(inode.error("names are out of order"));
                }
                last = name;
                if name != b"." && name != b".." {
                    self.entry(id, name, nid)?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: NodeId, name: &[u8], nid: u64) -> Result<(), ReadError> {
        if let Some(id) = self.hard_links.get(&nid) {
            self.tree.link_node(parent, name, *id);
            return self.check_limits();
        }
        let inode = StoredInode::read(self.reader, nid)?;
        let body = self.body(&inode)?;
        let id = self.tree.add(parent, name, inode.metadata.clone(), body);
        self.check_limits()?;
        if inode.kind == Kind::Directory {
            self.pending.push((inode, id));
        } else if inode.links > 1 {
            self.hard_links.insert(nid, id);
        }
        Ok(())
    }

    fn body(&self, inode: &StoredInode) -> Result<Body, ReadError> {
        let (major, minor) = inode.device();
        Ok(match inode.kind {
            Kind::Directory => Body::directory(),
            Kind::File => Body::File(inode.content),
            Kind::Symlink => Body::Symlink(self.target(inode)?),
            Kind::Character => Body::Character { major, minor },
            Kind::Block => Body::Block { major, minor },
            Kind::Fifo => Body::Fifo,
            Kind::Socket => Body::Socket,
        })
    }

    fn target(&self, inode: &StoredInode) -> Result<Box<[u8]>, ReadError> {
        let target = self.reader.contents(inode, MAX_TARGET_BYTES)?;
        if target.is_empty() || target.contains(&0) {
            return Err(inode.error("the link's target is empty or has a zero byte"));
        }
        Ok(target.into())
    }

    fn check_limits(&self) -> Result<(), ReadError> {
        let too_much = |limit, what| Err(ReadError::TooMuch { limit, what });
        if self.tree.len() > self.limits.entries {
            return too_much(self.limits.entries, "entries");
        }
        if self.tree.metadata_bytes() > self.limits.metadata_bytes {
            return too_much(
                self.limits.metadata_bytes,
                "bytes of names, link targets and extended attributes",
            );
        }
        Ok(())
    }
}

/// Names and inode numbers of one block of a directory.
fn entries<'a>(
    inode: &'a StoredInode,
    block: &'a [u8],
) -> Result<impl Iterator<Item = Result<(&'a [u8], u64), ReadError>>, ReadError> {
    use zerocopy::FromBytes;
    let dirent = |index: usize| {
        let bytes = block.get(index * format::DIRENT_BYTES..)?;
        let (dirent, _) = format::Dirent::read_from_prefix(bytes).ok()?;
        Some((usize::from(dirent.name_offset.get()), dirent.nid.get()))
    };
    let names_start = dirent(0).map_or(0, |(offset, _)| offset);
    if names_start == 0 || !names_start.is_multiple_of(format::DIRENT_BYTES) || names_start > block.len() {
        return Err(inode.error("a block of its entries is malformed"));
    }
    let count = names_start / format::DIRENT_BYTES;
    let entry = move |index| {
        let (start, nid) = dirent(index)?;
        let end = if index + 1 < count {
            dirent(index + 1)?.0
        } else {
            block.len()
        };
        let mut name = block.get(start..end)?;
        if index + 1 == count {
            // The last name of a block that is not the last one may end with zeros.
            name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        }
        let is_valid =
            !name.is_empty() && name.len() <= 255 && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        is_valid.then_some((name, nid))
    };
    let checked = move |index| entry(index).ok_or_else(|| inode.error("a name of its entries is malformed"));
    Ok((0..count).map(checked))
}

/// A file's contents, where an image has them.
pub(crate) struct StoredFile<'a> {
    image: &'a File,
    position: u64,
    /// End of the part that is stored in blocks.
    blocks_end: u64,
    tail: std::ops::Range<u64>,
    /// Up to here nothing is known to be a hole.
    data_until: u64,
}

impl<'a> StoredFile<'a> {
    /// `content` as [`read_tree`] gave it.
    pub(crate) fn new(image: &'a File, content: Content) -> Self {
        let position = u64::from(content.first_block) * BLOCK_BYTES;
        let tail_bytes = content.size_bytes % BLOCK_BYTES;
        let (in_blocks, tail) = match content.tail {
            Some(tail) => (content.size_bytes - tail_bytes, tail..tail + tail_bytes),
            None => (content.size_bytes, 0..0),
        };
        Self {
            image,
            position,
            blocks_end: position + in_blocks,
            tail,
            data_until: position,
        }
    }
}

impl Read for StoredFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (position, end) = if self.position < self.blocks_end {
            (&mut self.position, self.blocks_end)
        } else {
            (&mut self.tail.start, self.tail.end)
        };
        let most = usize::try_from(end - *position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.image.read_at(&mut buffer[..most], *position)?;
        *position += count as u64;
        Ok(count)
    }
}

impl Contents for StoredFile<'_> {
    fn skip_hole(&mut self, most: u64) -> io::Result<u64> {
        if self.position < self.data_until || self.position >= self.blocks_end {
            return Ok(0);
        }
        // Where the file's own position is does not matter: everything is read at explicit offsets.
        let data = match seek(self.image, SeekFrom::Data(self.position)) {
            Ok(data) => data.min(self.blocks_end),
            Err(Errno::NXIO) => self.blocks_end,
            Err(_) => self.position,
        };
        let skipped = (data - self.position).min(most) / BLOCK_BYTES * BLOCK_BYTES;
        self.position += skipped;
        self.data_until = seek(self.image, SeekFrom::Hole(self.position)).unwrap_or(self.blocks_end);
        Ok(skipped)
    }
}
