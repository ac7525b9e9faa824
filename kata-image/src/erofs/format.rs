//! Structures on disk, all little-endian: Linux `fs/erofs/erofs_fs.h`.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `EROFS_SUPER_OFFSET`: room for boot sectors.
pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`.
pub(super) const COMPAT_CHECKSUM: u32 = 1;
/// `EROFS_FEATURE_COMPAT_MTIME`: times are those of modification.
pub(super) const COMPAT_MTIME: u32 = 2;
/// Inodes are addressed in units of this many bytes (`EROFS_ISLOTBITS` is 5).
pub(super) const SLOT_BYTES: u64 = 32;

/// `struct erofs_super_block`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Superblock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root_nid: U16,
    pub(super) inodes: U64,
    pub(super) build_time: U64,
    pub(super) build_time_nanoseconds: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) unused: [u8; 44],
}

const _: () = assert!(size_of::<Superblock>() == 128);

/// `struct erofs_inode_compact`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CompactInode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) links: U16,
    pub(super) size: U32,
    pub(super) reserved: U32,
    pub(super) address: U32,
    pub(super) number: U32,
    pub(super) uid: U16,
    pub(super) gid: U16,
    pub(super) reserved_2: U32,
}

const _: () = assert!(size_of::<CompactInode>() == 32);

/// `struct erofs_inode_extended`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ExtendedInode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    pub(super) address: U32,
    pub(super) number: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nanoseconds: U32,
    pub(super) links: U32,
    pub(super) reserved_2: [u8; 16],
}

const _: () = assert!(size_of::<ExtendedInode>() == 64);

/// `i_format`: bit 0 tells compact from extended, bits 1 to 3 how contents are laid out.
pub(super) const FORMAT_EXTENDED: u16 = 1;
/// `EROFS_INODE_FLAT_PLAIN`: whole blocks only.
pub(super) const FORMAT_PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`: the last piece lies behind the inode.
pub(super) const FORMAT_INLINE: u16 = 2 << 1;

/// `struct erofs_dirent`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) nid: U64,
    pub(super) name_offset: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}

pub(super) const DIRENT_BYTES: usize = 12;
const _: () = assert!(size_of::<Dirent>() == DIRENT_BYTES);

/// `struct erofs_xattr_entry`, in front of name and value.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub(super) name_bytes: u8,
    pub(super) namespace: u8,
    pub(super) value_bytes: U16,
}

const _: () = assert!(size_of::<XattrEntry>() == 4);
