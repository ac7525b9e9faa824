//! Any bytes as a layer: an image and notes that can be merged, or an error within bounds, and the same every time.
//!
//! `cargo +nightly fuzz run layer ../tests/corpus/layer`.
#![no_main]

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use kata_image::erofs;
use kata_image::layer::{self, Converted, Layer};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const LIMITS: erofs::Limits = erofs::Limits { image_bytes: 16 << 20, entries: 2000, metadata_bytes: 4 << 20 };

fn memory() -> File {
    File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"))
}

fn convert(bytes: &[u8]) -> Option<(Converted, File)> {
    let out = memory();
    let converted = layer::convert(bytes, Path::new("layer"), &out, &LIMITS, &mut |_| {}).ok()?;
    assert!(converted.summary.size_bytes <= LIMITS.image_bytes);
    Some((converted, out))
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("memory");
    file.read_to_end(&mut bytes).expect("memory");
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let (first, second) = (convert(bytes), convert(bytes));
    let (Some((converted, image)), Some((again, other))) = (&first, &second) else {
        assert!(first.is_none() && second.is_none(), "one of two conversions failed");
        return;
    };
    assert!(converted == again && contents(image) == contents(other), "two images of one layer differ");
    let layer = Layer { image, notes: &converted.notes, label: Path::new("layer") };
    // What convert wrote can be read: merged with itself, and with nothing below where it needs nothing.
    let merged = layer::merge(&[layer], &memory(), &erofs::Limits::default(), &mut |_| {});
    if converted.notes.is_self_contained() {
        merged.expect("a layer that needs nothing");
        layer::merge(&[layer, layer], &memory(), &erofs::Limits::default(), &mut |_| {}).expect("twice the same");
    }
});
