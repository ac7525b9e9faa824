//! The balloon's configuration space (VIRTIO 1.2 §5.5.4).
//!
//! Owns which bytes are whose; knows no queue.

use super::PAGE_BYTES;

/// Where `actual` and `poison_val` are; `num_pages` is before them, `free_page_hint_cmd_id` between.
const ACTUAL: usize = 4;
const POISON: usize = 12;
const BYTES: usize = 16;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Pages that the host wants in the balloon.
    pub(super) target: u32,
    /// Pages that the driver says are in it.
    pub(super) actual: u32,
    /// What the driver fills free pages with.
    pub(super) poison: u32,
}

impl Config {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..ACTUAL].copy_from_slice(&self.target.to_le_bytes());
        bytes[ACTUAL..ACTUAL + 4].copy_from_slice(&self.actual.to_le_bytes());
        bytes[POISON..].copy_from_slice(&self.poison.to_le_bytes());
        bytes
    }

    /// The driver writes: to its own two fields, however it cuts them.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &byte) in (offset..BYTES).zip(data) {
            if (ACTUAL..ACTUAL + 4).contains(&at) {
                self.actual = with_byte(self.actual, at - ACTUAL, byte);
            } else if at >= POISON {
                self.poison = with_byte(self.poison, at - POISON, byte);
            }
        }
    }
}

/// Pages as bytes.
pub(super) fn bytes_of(pages: u32) -> u64 {
    u64::from(pages) * PAGE_BYTES
}

fn with_byte(value: u32, index: usize, byte: u8) -> u32 {
    let mut bytes = value.to_le_bytes();
    if let Some(old) = bytes.get_mut(index) {
        *old = byte;
    }
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_owns_two_of_four_fields() {
        let mut config = Config {
            target: 0x0102_0304,
            ..Config::default()
        };
        config.write(0, &[0xff; BYTES]);
        let expected = Config {
            target: 0x0102_0304,
            actual: u32::MAX,
            poison: u32::MAX,
        };
        assert_eq!(config, expected);
        let mut bytes = [0xff; BYTES];
        bytes[..4].copy_from_slice(&[4, 3, 2, 1]);
        bytes[8..12].fill(0);
        assert_eq!(config.to_bytes(), bytes);
    }

    #[test]
    fn writes_of_any_cut_are_put_together() {
        let mut config = Config::default();
        config.write(3, &[9, 0x78]);
        config.write(5, &[0x56, 0x34]);
        config.write(7, &[0x12, 9]);
        config.write(15, &[0xaa, 9, 9]);
        config.write(usize::MAX, &[9]);
        let expected = Config {
            target: 0,
            actual: 0x1234_5678,
            poison: 0xaa00_0000,
        };
        assert_eq!(config, expected);
    }
}
