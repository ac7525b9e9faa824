//! Any bytes as the deeds of a hostile driver of the network device, and of a careless host.
//! `cargo +nightly fuzz run net`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kata_virtio::mock::net::run_script(data));
