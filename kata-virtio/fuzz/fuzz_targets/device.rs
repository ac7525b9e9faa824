//! Any bytes as the deeds of a hostile driver. `cargo +nightly fuzz run device`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::vsock::run_script(data));
