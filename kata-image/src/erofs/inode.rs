//! One inode as bytes: compact where everything fits into its fields, extended otherwise, and the extended
//! attributes behind it.

use zerocopy::IntoBytes;

use super::format::{CompactInode, ExtendedInode, FORMAT_EXTENDED, XattrEntry};
use crate::tree::{Body, Node, Time, Xattrs};

/// What an inode tells besides its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) size_bytes: u64,
    /// First block of its contents, or its device number.
    pub(super) address: u32,
    /// How its contents are laid out.
    pub(super) format: u16,
}

/// Whether the short form can hold this inode. It has no time of its own: the superblock's counts.
pub(super) fn is_compact(node: &Node, size_bytes: u64, build_time: Time) -> bool {
    let small = |number: u32| u16::try_from(number).is_ok();
    let metadata = &node.metadata;
    metadata.mtime == build_time
        && small(metadata.uid)
        && small(metadata.gid)
        && small(node.links)
        && u32::try_from(size_bytes).is_ok()
}

/// Bytes of an inode with its attributes.
pub(super) fn stored_bytes(node: &Node, is_compact: bool) -> usize {
    let inode = if is_compact {
        size_of::<CompactInode>()
    } else {
        size_of::<ExtendedInode>()
    };
    inode + node.metadata.xattrs.stored_bytes()
}

/// The inode with its attributes. Whether it is compact follows from [`is_compact`].
pub(super) fn encode(node: &Node, inode: &Inode, build_time: Time) -> Vec<u8> {
    let mut bytes = if is_compact(node, inode.size_bytes, build_time) {
        compact(node, inode).as_bytes().to_vec()
    } else {
        extended(node, inode).as_bytes().to_vec()
    };
    encode_xattrs(&node.metadata.xattrs, &mut bytes);
    bytes
}

/// For numbers that [`is_compact`] or a limit elsewhere has shown to fit.
fn low_16(number: u32) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or_default()
}

fn compact(node: &Node, inode: &Inode) -> CompactInode {
    let metadata = &node.metadata;
    CompactInode {
        format: inode.format.into(),
        xattr_count: xattr_count(&metadata.xattrs).into(),
        mode: mode(node).into(),
        links: low_16(node.links).into(),
        size: u32::try_from(inode.size_bytes).unwrap_or(u32::MAX).into(),
        reserved: 0.into(),
        address: inode.address.into(),
        number: inode.number.into(),
        uid: low_16(metadata.uid).into(),
        gid: low_16(metadata.gid).into(),
        reserved_2: 0.into(),
    }
}

fn extended(node: &Node, inode: &Inode) -> ExtendedInode {
    let metadata = &node.metadata;
    ExtendedInode {
        format: (inode.format | FORMAT_EXTENDED).into(),
        xattr_count: xattr_count(&metadata.xattrs).into(),
        mode: mode(node).into(),
        reserved: 0.into(),
        size: inode.size_bytes.into(),
        address: inode.address.into(),
        number: inode.number.into(),
        uid: metadata.uid.into(),
        gid: metadata.gid.into(),
        mtime: metadata.mtime.seconds.cast_unsigned().into(),
        mtime_nanoseconds: metadata.mtime.nanoseconds.into(),
        links: node.links.into(),
        reserved_2: [0; 16],
    }
}

/// `st_mode`: the type of the file (stat(2), `S_IFMT`) and the permission bits.
fn mode(node: &Node) -> u16 {
    let kind = match node.body {
        Body::Fifo => 0o010_000,
        Body::Character { .. } => 0o020_000,
        Body::Directory(_) => 0o040_000,
        Body::Block { .. } => 0o060_000,
        Body::File(_) => 0o100_000,
        Body::Symlink(_) => 0o120_000,
        Body::Socket => 0o140_000,
    };
    kind | node.metadata.mode
}

/// `EROFS_FT_*`, as in `struct dirent`'s order of old.
pub(super) fn file_type(body: &Body) -> u8 {
    match body {
        Body::File(_) => 1,
        Body::Directory(_) => 2,
        Body::Character { .. } => 3,
        Body::Block { .. } => 4,
        Body::Fifo => 5,
        Body::Socket => 6,
        Body::Symlink(_) => 7,
    }
}

/// `new_encode_dev` (linux/kdev_t.h).
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// `i_xattr_icount`: units of four bytes behind the header, plus one; 0 without attributes.
fn xattr_count(xattrs: &Xattrs) -> u16 {
    let Some(behind_header) = xattrs.stored_bytes().checked_sub(crate::tree::XATTR_HEADER_BYTES) else {
        return 0;
    };
    // The attributes of one entry are limited to what this field can count.
    u16::try_from(behind_header / 4 + 1).unwrap_or(u16::MAX)
}

fn encode_xattrs(xattrs: &Xattrs, bytes: &mut Vec<u8>) {
    if xattrs.stored_bytes() == 0 {
        return;
    }
    // No name filter and no shared attributes: the header is zeros.
    bytes.extend([0; crate::tree::XATTR_HEADER_BYTES]);
    for xattr in xattrs.iter() {
        let entry = XattrEntry {
            // Both were checked when the attribute was made.
            name_bytes: u8::try_from(xattr.name.len()).unwrap_or(u8::MAX),
            namespace: xattr.namespace,
            value_bytes: u16::try_from(xattr.value.len()).unwrap_or(u16::MAX).into(),
        };
        bytes.extend(entry.as_bytes());
        bytes.extend(&*xattr.name);
        bytes.extend(&*xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number(1, 3), 0x0103);
        assert_eq!(device_number(0, 0), 0);
        // makedev(259, 0x12345), as stat(2) packs it into 32 bits.
        assert_eq!(device_number(0x103, 0x12345), 0x1231_0345);
    }
}
