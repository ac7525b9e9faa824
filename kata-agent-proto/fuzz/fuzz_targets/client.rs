//! Any bytes as the answers of a guest that lies. `cargo +nightly fuzz run client`
#![no_main]

#[path = "../../tests/hostile/mod.rs"]
mod scripts;

libfuzzer_sys::fuzz_target!(|data: &[u8]| scripts::client(data));
