//! The superblock in front of a hash tree: cryptsetup's wiki, "DMVerity", "Verity superblock format".

use sha2::{Digest as _, Sha256};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::{BLOCK, Salt};

#[derive(Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Superblock {
    signature: [u8; 8],
    version: U32,
    hash_type: U32,
    uuid: [u8; 16],
    algorithm: [u8; 32],
    data_block_bytes: U32,
    hash_block_bytes: U32,
    data_blocks: U64,
    salt_bytes: U16,
    padding: [u8; 6],
    salt: [u8; 256],
    padding_2: [u8; 168],
}

const _: () = assert!(size_of::<Superblock>() == 512);

/// The tree's first block.
pub(super) fn encode(data_blocks: u64, salt: &Salt) -> Vec<u8> {
    let salt = salt.as_bytes();
    // 4096 fits.
    let block_bytes = U32::new(u32::try_from(BLOCK).unwrap_or_default());
    let superblock = Superblock {
        signature: *b"verity\0\0",
        version: 1.into(),
        // The salt comes before the block.
        hash_type: 1.into(),
        uuid: uuid(data_blocks, salt),
        algorithm: padded(b"sha256"),
        data_block_bytes: block_bytes,
        hash_block_bytes: block_bytes,
        data_blocks: data_blocks.into(),
        // A salt has at most 256 bytes.
        salt_bytes: u16::try_from(salt.len()).unwrap_or_default().into(),
        padding: [0; 6],
        salt: padded(salt),
        padding_2: [0; 168],
    };
    let mut block = superblock.as_bytes().to_vec();
    block.resize(BLOCK, 0);
    block
}

fn padded<const BYTES: usize>(value: &[u8]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..value.len()].copy_from_slice(value);
    bytes
}

/// RFC 9562 version 8; it follows from the salt, so that the tree is the same on every machine.
fn uuid(data_blocks: u64, salt: &[u8]) -> [u8; 16] {
    let hasher = Sha256::new_with_prefix("dm-verity uuid of ").chain_update(data_blocks.to_le_bytes());
    let digest = hasher.chain_update(salt).finalize();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
