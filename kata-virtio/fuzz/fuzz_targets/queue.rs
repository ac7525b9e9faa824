//! Any bytes as descriptors and rings. `cargo +nightly fuzz run queue`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::run_queue(data));
