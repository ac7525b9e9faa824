//! Any bytes as an archive of an image: an image whose layers lie in it, or an error; nothing of the host.
//!
//! `cargo +nightly fuzz run docker_archive ../tests/corpus/docker_archive`.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use kata_image::{Image, Platform};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|bytes: &[u8]| {
    let mut archive = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"));
    archive.write_all(bytes).expect("memory");
    let path = format!("/proc/self/fd/{}", archive.as_raw_fd());
    Image::is_at(&path).expect("a file in memory can be read");
    let Ok(image) = Image::open(&path, None, &Platform::host(), std::env::temp_dir()) else { return };
    for index in 0..image.layers().len() {
        let size = image.layers()[index].size_bytes;
        let layer = image.layer(index).expect("a layer of the list");
        if layer.finish().is_ok() {
            assert!(size <= bytes.len() as u64 * 1100, "a layer of more bytes than there are");
        }
    }
});
