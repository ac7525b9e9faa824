//! Any text as a `WWW-Authenticate` header: some challenges or none, in an end.
//!
//! `cargo +nightly fuzz run challenge ../tests/corpus/challenge`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| {
    assert!(kata_image::fuzzing::challenges(header) <= header.len());
});
