//! Any bytes as a kernel's log: the same records however they arrive.
//!
//! With cargo-fuzz: `cargo +nightly fuzz run kernel_log corpus/kernel_log`.
#![no_main]

use kata_agent_proto::kernel_log::{KernelRecord, KernelRecords};
use libfuzzer_sys::fuzz_target;

fn told(chunks: &[&[u8]]) -> Vec<KernelRecord> {
    let mut records = KernelRecords::default();
    let mut told = Vec::new();
    for chunk in chunks {
        records.feed(chunk);
        told.extend(std::iter::from_fn(|| records.next_record()));
    }
    told
}

fuzz_target!(|bytes: &[u8]| {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let whole = told(&[bytes]);
    if bytes.len() < 8 << 10 {
        assert_eq!(whole, told(&[first, second]));
    }
});
