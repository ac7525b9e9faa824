//! Any bytes as a stream of files: a tree below the destination or an error, and nothing outside.
//!
//! With cargo-fuzz: `cargo +nightly fuzz run files corpus/files`.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use kata_agent_proto::files::{Policy, Root, receive};
use libfuzzer_sys::fuzz_target;

/// What a socket holds, so that one thread can do both.
const BYTES_MAX: usize = 64 << 10;

const POLICY: Policy = Policy { owners: false, privileges: false, limit_bytes: Some(1 << 20) };

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().expect("a directory");
    let to = directory.path().join("to");
    std::fs::create_dir(&to).expect("made");
    let (mut near, far) = UnixStream::pair().expect("a pair");
    near.write_all(&bytes[..bytes.len().min(BYTES_MAX)]).expect("written");
    near.shutdown(Shutdown::Write).expect("shut down");
    let root = Root::own().expect("a root");
    if let Ok(tally) = receive(&root, &to, Some(b"name"), POLICY, &far, &mut |_, _| {}) {
        assert!(tally.bytes <= 1 << 20);
    }
    let outside = std::fs::read_dir(directory.path()).expect("there").count();
    assert_eq!(outside, 1, "something is outside");
});
