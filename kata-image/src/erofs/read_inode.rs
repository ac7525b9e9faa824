//! One inode as an image has it: its fields, its extended attributes, and where its contents are. Every number is
//! taken for a lie until the image's size says that it may be true.

use zerocopy::FromBytes;

use super::BLOCK_BYTES;
use super::format::{
    CompactInode, ExtendedInode, FORMAT_EXTENDED, FORMAT_INLINE, FORMAT_PLAIN, SLOT_BYTES, XattrEntry,
};
use super::read::{ReadError, Reader};
use crate::tree::{Content, Metadata, Time, XATTR_HEADER_BYTES, Xattr, Xattrs};

/// `S_IFMT` (stat(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink,
    Character,
    Block,
    Fifo,
    Socket,
}

#[derive(Debug, Clone)]
pub(super) struct StoredInode {
    pub(super) nid: u64,
    pub(super) kind: Kind,
    pub(super) metadata: Metadata,
    pub(super) links: u32,
    pub(super) size_bytes: u64,
    /// Where its contents are: the tail's place is its offset in the image.
    pub(super) content: Content,
    /// First block, or device number.
    address: u32,
}

/// What both forms of an inode tell.
struct Fields {
    format: u16,
    xattr_count: u16,
    mode: u16,
    links: u32,
    size_bytes: u64,
    address: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    bytes: u64,
}

fn error(nid: u64, what: &'static str) -> ReadError {
    ReadError::Inode { nid, what }
}

impl StoredInode {
    pub(super) fn error(&self, what: &'static str) -> ReadError {
        error(self.nid, what)
    }

    pub(super) fn read(reader: &Reader<'_>, nid: u64) -> Result<Self, ReadError> {
        let outside = || error(nid, "it lies outside the image");
        let offset = nid
            .checked_mul(SLOT_BYTES)
            .and_then(|offset| offset.checked_add(reader.meta_offset))
            .ok_or_else(outside)?;
        let fields = Fields::read(reader, offset)?.ok_or_else(outside)?;
        let kind = kind(fields.mode).ok_or_else(|| error(nid, "its type is none"))?;
        let xattr_bytes = match fields.xattr_count {
            0 => 0,
            count => XATTR_HEADER_BYTES as u64 + 4 * (u64::from(count) - 1),
        };
        let xattrs = xattrs(reader, nid, offset + fields.bytes, xattr_bytes)?;
        let content = match kind {
            Kind::Directory | Kind::File | Kind::Symlink => {
                fields.content(reader, nid, offset + fields.bytes + xattr_bytes)?
            }
            _ => Content::default(),
        };
        if fields.mtime.nanoseconds >= 1_000_000_000 {
            return Err(error(nid, "its time has more nanoseconds than a second"));
        }
        Ok(Self {
            nid,
            kind,
            metadata: Metadata {
                mode: fields.mode & 0o7777,
                uid: fields.uid,
                gid: fields.gid,
                mtime: fields.mtime,
                xattrs,
            },
            links: fields.links,
            size_bytes: fields.size_bytes,
            content,
            address: fields.address,
        })
    }

    /// Major and minor number (`new_decode_dev`, linux/kdev_t.h).
    pub(super) fn device(&self) -> (u32, u32) {
        let device = self.address;
        (
            (device & 0xf_ff00) >> 8,
            (device & 0xff) | ((device >> 12) & 0xf_ff00),
        )
    }
}

fn kind(mode: u16) -> Option<Kind> {
    match mode & 0o170_000 {
        0o010_000 => Some(Kind::Fifo),
        0o020_000 => Some(Kind::Character),
        0o040_000 => Some(Kind::Directory),
        0o060_000 => Some(Kind::Block),
        0o100_000 => Some(Kind::File),
        0o120_000 => Some(Kind::Symlink),
        0o140_000 => Some(Kind::Socket),
        _ => None,
    }
}

impl Fields {
    /// `None` when the inode lies outside the image.
    fn read(reader: &Reader<'_>, offset: u64) -> Result<Option<Self>, ReadError> {
        let mut bytes = [0; size_of::<ExtendedInode>()];
        let compact_bytes = size_of::<CompactInode>();
        if reader.fill(offset, &mut bytes[..compact_bytes])?.is_none() {
            return Ok(None);
        }
        if u16::from_le_bytes([bytes[0], bytes[1]]) & FORMAT_EXTENDED == 0 {
            let compact = CompactInode::read_from_prefix(&bytes).ok();
            return Ok(compact.map(|(inode, _)| Self::compact(&inode, reader.build_time)));
        }
        if reader.fill(offset, &mut bytes)?.is_none() {
            return Ok(None);
        }
        let extended = ExtendedInode::read_from_prefix(&bytes).ok();
        Ok(extended.map(|(inode, _)| Self::extended(&inode)))
    }

    fn compact(inode: &CompactInode, build_time: Time) -> Self {
        Self {
            format: inode.format.get(),
            xattr_count: inode.xattr_count.get(),
            mode: inode.mode.get(),
            links: inode.links.get().into(),
            size_bytes: inode.size.get().into(),
            address: inode.address.get(),
            uid: inode.uid.get().into(),
            gid: inode.gid.get().into(),
            mtime: build_time,
            bytes: size_of::<CompactInode>() as u64,
        }
    }

    fn extended(inode: &ExtendedInode) -> Self {
        Self {
            format: inode.format.get() & !FORMAT_EXTENDED,
            xattr_count: inode.xattr_count.get(),
            mode: inode.mode.get(),
            links: inode.links.get(),
            size_bytes: inode.size.get(),
            address: inode.address.get(),
            uid: inode.uid.get(),
            gid: inode.gid.get(),
            mtime: Time {
                seconds: inode.mtime.get().cast_signed(),
                nanoseconds: inode.mtime_nanoseconds.get(),
            },
            bytes: size_of::<ExtendedInode>() as u64,
        }
    }

    /// Where the contents are; all of it lies inside the image.
    fn content(&self, reader: &Reader<'_>, nid: u64, tail: u64) -> Result<Content, ReadError> {
        let tail_bytes = self.size_bytes % BLOCK_BYTES;
        let (in_blocks, has_tail) = match self.format {
            FORMAT_PLAIN => (self.size_bytes, false),
            FORMAT_INLINE => (self.size_bytes - tail_bytes, tail_bytes > 0),
            _ => {
                return Err(ReadError::Unsupported {
                    feature: "compressed or chunked contents",
                });
            }
        };
        let blocks_end = u64::from(self.address) * BLOCK_BYTES;
        let blocks_end = blocks_end
            .checked_add(in_blocks)
            .filter(|end| *end <= reader.size_bytes);
        if in_blocks > 0 && blocks_end.is_none() {
            return Err(error(nid, "its contents lie outside the image"));
        }
        let tail_end = tail % BLOCK_BYTES + tail_bytes;
        if has_tail && (tail_end > BLOCK_BYTES || tail + tail_bytes > reader.size_bytes) {
            return Err(error(
                nid,
                "its last piece does not lie in one block of the image",
            ));
        }
        Ok(Content {
            size_bytes: self.size_bytes,
            // Where nothing is in blocks, the address means nothing.
            first_block: if in_blocks > 0 { self.address } else { 0 },
            tail: has_tail.then_some(tail),
        })
    }
}

/// `struct erofs_xattr_ibody_header`: the filter of names, how many shared attributes, and seven bytes for later.
const SHARED_COUNT_OFFSET: usize = 4;

fn xattrs(reader: &Reader<'_>, nid: u64, offset: u64, bytes: u64) -> Result<Xattrs, ReadError> {
    if bytes == 0 {
        return Ok(Xattrs::default());
    }
    let malformed = || error(nid, "its extended attributes are malformed");
    let mut stored = vec![0; usize::try_from(bytes).map_err(|_| malformed())?];
    reader.fill(offset, &mut stored)?.ok_or_else(malformed)?;
    let shared_count = stored.get(SHARED_COUNT_OFFSET).copied().unwrap_or_default();
    let rest = stored.get(XATTR_HEADER_BYTES..).unwrap_or_default();
    let (ids, mut entries) = rest
        .split_at_checked(4 * usize::from(shared_count))
        .ok_or_else(malformed)?;
    let mut xattrs = Vec::new();
    for id in ids.chunks_exact(4) {
        let id = id.iter().rev().fold(0, |id, byte| id << 8 | u64::from(*byte));
        xattrs.push(shared(reader, id)?.ok_or_else(malformed)?);
    }
    while !entries.is_empty() {
        let (xattr, after) = entry(entries).ok_or_else(malformed)?;
        xattrs.push(xattr);
        entries = after;
    }
    let count = xattrs.len();
    let xattrs = Xattrs::from_stored(xattrs);
    if xattrs.iter().count() < count || !xattrs.fits() {
        return Err(malformed());
    }
    Ok(xattrs)
}

/// An attribute that several inodes share.
fn shared(reader: &Reader<'_>, id: u64) -> Result<Option<Xattr>, ReadError> {
    let offset = reader.xattr_offset + 4 * id;
    let mut stored = vec![0; size_of::<XattrEntry>()];
    if reader.fill(offset, &mut stored)?.is_none() {
        return Ok(None);
    }
    let Ok((header, _)) = XattrEntry::read_from_prefix(&stored) else {
        return Ok(None);
    };
    stored.resize(
        stored.len() + usize::from(header.name_bytes) + usize::from(header.value_bytes.get()),
        0,
    );
    if reader.fill(offset, &mut stored)?.is_none() {
        return Ok(None);
    }
    Ok(entry(&stored).map(|(xattr, _)| xattr))
}

/// The first attribute of these, and what follows it.
fn entry(bytes: &[u8]) -> Option<(Xattr, &[u8])> {
    let (header, _) = XattrEntry::read_from_prefix(bytes).ok()?;
    let name_end = size_of::<XattrEntry>() + usize::from(header.name_bytes);
    let value_end = name_end + usize::from(header.value_bytes.get());
    let name = bytes.get(size_of::<XattrEntry>()..name_end)?;
    let value = bytes.get(name_end..value_end)?;
    let xattr = Xattr {
        namespace: header.namespace,
        name: name.into(),
        value: value.into(),
    };
    let after = bytes.get(value_end.next_multiple_of(4)..).unwrap_or_default();
    xattr.is_valid().then_some((xattr, after))
}
