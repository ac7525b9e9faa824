//! CRC-32C (Castagnoli) as the superblock wants it: reflected, started from all ones, not inverted at the end
//! (Linux `fs/erofs/super.c`, `erofs_superblock_csum_verify`).

/// 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Continues a checksum, which begins as `!0`.
pub(super) fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value() {
        // RFC 3720 and the CRC catalogue: "123456789" gives e3069283, inverted at the end.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    }
}
