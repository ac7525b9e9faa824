//! Any bytes as an archive: an image or an error within bounds, and the same image every time.
//!
//! With cargo-fuzz: `cargo +nightly fuzz run archive ../tests/corpus/archive`. Without it, from this directory:
//! `RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
//! -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing"
//! cargo +nightly run --release --target x86_64-unknown-linux-gnu -- corpus ../tests/corpus/archive`.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use kata_image::{Source, erofs};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const LIMITS: erofs::Limits = erofs::Limits { image_bytes: 16 << 20, entries: 2000, metadata_bytes: 4 << 20 };

fn memory() -> File {
    File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"))
}

fn image(archive: &File) -> Option<Vec<u8>> {
    let out = memory();
    let source = Source::Archive(format!("/proc/self/fd/{}", archive.as_raw_fd()).into());
    let summary = erofs::write_within(&source, &out, &LIMITS, &mut |_| {}).ok()?;
    assert!(summary.size_bytes <= LIMITS.image_bytes);
    erofs::Superblock::read(&out).expect("the superblock of an image");
    Some(std::fs::read(format!("/proc/self/fd/{}", out.as_raw_fd())).expect("the image"))
}

fuzz_target!(|bytes: &[u8]| {
    let mut archive = memory();
    archive.write_all(bytes).expect("memory");
    let first = image(&archive);
    assert!(first == image(&archive), "two images of one archive differ");
});
