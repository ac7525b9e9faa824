//! Any bytes as accesses to virtio-mmio. `cargo +nightly fuzz run transport`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::run_transport(data));
