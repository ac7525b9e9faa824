//! Any bytes as a packet header. `cargo +nightly fuzz run header`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::vsock::check_header(data));
