//! Any bytes as the first words of a guest. `cargo +nightly fuzz run hello`
#![no_main]

#[path = "../../tests/hostile/mod.rs"]
mod scripts;

libfuzzer_sys::fuzz_target!(|data: &[u8]| scripts::hello(data));
