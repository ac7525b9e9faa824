//! Any bytes as an image of a layer that lies in the cache: merged, or refused, within bounds.
//!
//! `cargo +nightly fuzz run stored ../tests/corpus/stored`.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use kata_image::erofs;
use kata_image::layer::{self, Layer, Notes};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const LIMITS: erofs::Limits = erofs::Limits { image_bytes: 16 << 20, entries: 2000, metadata_bytes: 4 << 20 };

fn memory() -> File {
    File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"))
}

fuzz_target!(|bytes: &[u8]| {
    // The superblock's checksum would refuse nearly everything: the bit that asks for it is taken away.
    let mut bytes = bytes.to_vec();
    if let Some(features) = bytes.get_mut(1032) {
        *features &= !1;
    }
    let mut image = memory();
    image.write_all(&bytes).expect("memory");
    let notes = Notes::default();
    let layer = Layer { image: &image, notes: &notes, label: Path::new("layer") };
    let out = memory();
    if let Ok(summary) = layer::merge(&[layer], &out, &LIMITS, &mut |_| {}) {
        assert!(summary.size_bytes <= LIMITS.image_bytes);
        let layer = Layer { image: &out, ..layer };
        layer::merge(&[layer], &memory(), &erofs::Limits::default(), &mut |_| {}).expect("what merge wrote");
    }
});
