//! What the fuzzer has found worth keeping, as an ordinary test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use kata_virtio::mock::vsock::{check_header, run_script};
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
fn the_corpus_of_headers_holds() {
    assert!(each("header", check_header) >= 4);
}

#[test]
fn the_corpus_of_scripts_holds() {
    assert!(each("device", run_script) >= 15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_script_holds(script in prop::collection::vec(any::<u8>(), 0..400)) {
        run_script(&script);
    }
}
