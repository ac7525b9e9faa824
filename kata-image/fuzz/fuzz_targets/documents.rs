//! Any bytes as a manifest, an index or a configuration: one of them, or an error.
//!
//! `cargo +nightly fuzz run documents ../tests/corpus/documents`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let first = kata_image::fuzzing::document(bytes);
    assert_eq!(first, kata_image::fuzzing::document(bytes));
});
