//! What the fuzzer has found worth keeping, as an ordinary test.

use std::path::Path;

use kata_virtio::mock::console::run_script;
use proptest::prelude::*;

#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/console");
    let files = std::fs::read_dir(corpus).unwrap();
    let scripts = files.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    assert!(scripts.map(|script| run_script(&script)).count() >= 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_script_holds(script in prop::collection::vec(any::<u8>(), 0..400)) {
        run_script(&script);
    }
}
