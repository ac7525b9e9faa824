//! Any bytes as the requests of a hostile driver. `cargo +nightly fuzz run block`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::block::run_script(data));
