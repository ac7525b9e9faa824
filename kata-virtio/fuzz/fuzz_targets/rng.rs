//! Any bytes as the deeds of a hostile driver of the entropy source. `cargo +nightly fuzz run rng`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::rng::run_script(data));
