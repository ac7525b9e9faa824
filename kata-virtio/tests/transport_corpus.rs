//! What the fuzzer has found worth keeping for registers and rings, as an ordinary test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use kata_virtio::mock::{run_queue, run_transport};
use proptest::prelude::*;

fn each(target: &str, run: fn(&[u8])) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files.map(|path| run(&std::fs::read(path).unwrap())).count()
}

#[test]
fn the_corpus_of_register_accesses_holds() {
    assert!(each("transport", run_transport) >= 14);
}

#[test]
fn the_corpus_of_rings_holds() {
    assert!(each("queue", run_queue) >= 18);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_register_accesses_hold(script in prop::collection::vec(any::<u8>(), 0..300)) {
        run_transport(&script);
    }

    #[test]
    fn any_rings_hold(script in prop::collection::vec(any::<u8>(), 0..400)) {
        run_queue(&script);
    }
}
