//! Deeds of a hostile driver that need no device in particular, as told by a string of bytes.
//!
//! Owns how bytes become numbers and chains; knows queues, no device.

use super::{Bench, Buffer};
use crate::Device;

/// Most buffers of a chain: more than a queue has entries.
const MOST_BUFFERS: u8 = 80;

/// What is left of the script.
pub(super) struct Script<'a>(pub(super) &'a [u8]);

impl<'a> Script<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next byte, 0 at the end.
    pub(super) fn small(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    pub(super) fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.small(), self.small()])
    }

    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Small numbers by one byte, any number by five.
    pub(super) fn number(&mut self) -> u32 {
        match self.small() {
            255 => u32::from_le_bytes([self.small(), self.small(), self.small(), self.small()]),
            small => u32::from(small) * 300,
        }
    }

    /// A buffer anywhere in the address space, more often in memory.
    pub(super) fn buffer(&mut self) -> Buffer {
        let place = self.small();
        let shift = if place & 1 == 0 {
            4
        } else {
            u32::from(place >> 1) % 40
        };
        Buffer {
            address: u64::from(self.number()) << shift,
            len: self.number(),
            writable: place & 0x80 != 0,
        }
    }
}

/// Breaks a rule of the queues on one of those that `bench` has, or offers a chain of any buffers, or
/// starts again. Returns whether the mock can still follow its own queues: the device may have been told
/// to write into them.
pub(super) fn misbehave<D: Device>(bench: &mut Bench<D>, script: &mut Script<'_>) -> bool {
    let queues = bench.rings.queues().len();
    let index = u16::from(script.small()) % u16::try_from(queues).unwrap_or(1);
    match script.small() % 8 {
        0 => bench.rings.queue(index).corrupt_avail_index(script.short()),
        1 => bench.rings.publish(index, script.short()),
        2 => {
            let (at, buffer) = (u16::from(script.small() & 31), script.buffer());
            bench
                .rings
                .forge(index, at, buffer, script.short() & 7, script.short() & 63);
        }
        3 => {
            bench.reset();
            return true;
        }
        act => {
            let count = script.small() % MOST_BUFFERS;
            let buffers: Vec<Buffer> = (0..count).map(|_| script.buffer()).collect();
            if act == 4 {
                let table = bench.rings.place(16 * u32::from(MOST_BUFFERS));
                bench.rings.queue(index).add_indirect(table, &buffers);
            } else {
                bench.rings.queue(index).add(&buffers);
            }
        }
    }
    false
}

/// The device's figure of this name.
///
/// # Panics
/// When it has none.
pub(super) fn figure<D: Device>(bench: &Bench<D>, name: &str) -> u64 {
    let figures = bench.device.meter().figures();
    let found = figures.iter().find(|figure| figure.0 == name);
    assert!(found.is_some(), "no figure {name}");
    found.map_or(0, |figure| figure.1)
}
