//! Any bytes as the deeds of a hostile driver of the balloon. `cargo +nightly fuzz run balloon`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::balloon::run_script(data));
