//! Any bytes as the deeds of a hostile driver of the console. `cargo +nightly fuzz run console`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::console::run_script(data));
