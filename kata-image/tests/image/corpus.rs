//! The fuzzer's corpus as an ordinary test: every file is an image or an error, within bounds.

use std::fs;
use std::path::Path;

use kata_image::{Source, erofs};

use crate::oracle::chain;

const LIMITS: erofs::Limits = erofs::Limits {
    image_bytes: 16 << 20,
    entries: 2000,
    metadata_bytes: 4 << 20,
};

fn verdict(path: &Path) -> String {
    let out = tempfile::tempfile().unwrap();
    match erofs::write_within(&Source::Archive(path.into()), &out, &LIMITS, &mut |_| {}) {
        Ok(summary) => {
            erofs::Superblock::read(&out).unwrap();
            format!("{} inodes", summary.inodes)
        }
        Err(error) => chain(&error).replace(&format!("{}", path.display()), "ARCHIVE"),
    }
}

#[test]
fn every_file_of_the_corpus_is_an_image_or_an_error() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/archive");
    let entries = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path());
    let mut verdicts: Vec<_> = entries
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                verdict(&path),
            )
        })
        .collect();
    verdicts.sort_unstable();
    assert_eq!(verdicts, expected());
}

/// What each file is.
fn expected() -> Vec<(String, String)> {
    let refused = "ARCHIVE holds an entry that is refused";
    let expected = [
        ("attributes.tar", "2 inodes"),
        (
            "below-a-link.tar",
            &format!("{refused}: l/x lies below the symbolic link l"),
        ),
        (
            "clash.tar",
            &format!("{refused}: x is both a directory and something else"),
        ),
        ("dot-dot.tar", &format!("{refused}: ../x leaves the root")),
        ("everything-gnu.tar", "9 inodes"),
        ("everything-pax.tar", "9 inodes"),
        ("everything.tar.gz", "9 inodes"),
        ("everything.tar.zst", "9 inodes"),
        ("huge.tar", "x makes the image larger than 16777216 bytes"),
        ("sparse-gnu.tar", "2 inodes"),
        ("sparse-posix.tar", "2 inodes"),
        (
            "truncated.tar",
            "the archive ARCHIVE is broken: the archive ends in the middle",
        ),
        ("twice.tar", "2 inodes"),
        ("whiteout.tar", "2 inodes"),
    ];
    expected
        .iter()
        .map(|(name, verdict)| ((*name).to_owned(), (*verdict).to_owned()))
        .collect()
}
