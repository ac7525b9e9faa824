//! The fuzzers' corpora as an ordinary test: every file is an image or an error, within bounds.

use std::fs::{self, File};
use std::path::Path;

use kata_image::erofs::Limits;
use kata_image::layer::{self, Layer, Notes};

use crate::oracle::chain;
use crate::stack::convert_within;

const LIMITS: Limits = Limits {
    image_bytes: 16 << 20,
    entries: 2000,
    metadata_bytes: 4 << 20,
};

fn check(corpus: &str, judge: impl Fn(&Path) -> String, expected: &[(&str, &str)]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(corpus);
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                judge(&path),
            )
        })
        .collect();
    found.sort_unstable();
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, verdict)| ((*name).to_owned(), (*verdict).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn layers() {
    let judge = |path: &Path| {
        let converted = convert_within(&fs::read(path).unwrap(), &tempfile::tempfile().unwrap(), &LIMITS);
        match converted {
            Err(error) => chain(&error),
            Ok(converted) => {
                let notes = converted.notes;
                let inodes = converted.summary.inodes;
                let (implied, links) = (notes.implied_directories, notes.links.len());
                format!(
                    "{inodes} inodes, {} whiteouts, {implied} implied, {links} links",
                    notes.whiteouts
                )
            }
        }
    };
    let refused = |text: &str| format!("LAYER holds an entry that is refused: {text}");
    let everything = "12 inodes, 2 whiteouts, 2 implied, 1 links";
    let nothing = "1 inodes, 0 whiteouts, 0 implied, 0 links";
    let device = "whiteout is a character device 0:0, which overlayfs takes for a whiteout";
    let link = "h is a hard link to .wh.a, which is not an earlier file of the archive";
    check(
        "layer",
        judge,
        &[
            (
                "below-whiteout.tar",
                &refused(".wh.a/b is no whiteout that a layer can have"),
            ),
            ("both.tar", "3 inodes, 0 whiteouts, 0 implied, 0 links"),
            (
                "cut.tar.gz",
                "the archive LAYER is broken: the archive ends in the middle",
            ),
            ("device.tar", &refused(device)),
            ("empty.tar", nothing),
            ("empty.tar.gz", nothing),
            ("everything.tar", everything),
            ("everything.tar.gz", everything),
            ("everything.tar.zst", everything),
            ("link-out.tar", &refused("../a leaves the root")),
            ("link-to-whiteout.tar", &refused(link)),
            (
                "nothing.tar",
                &refused(".wh. is no whiteout that a layer can have"),
            ),
        ],
    );
}

#[test]
fn stored_images() {
    let judge = |path: &Path| {
        let (image, notes) = (File::open(path).unwrap(), Notes::default());
        let layer = Layer {
            image: &image,
            notes: &notes,
            label: Path::new("LAYER"),
        };
        let merged = layer::merge(&[layer], &tempfile::tempfile().unwrap(), &LIMITS, &mut |_| {});
        merged.map_or_else(
            |error| chain(&error),
            |summary| format!("{} inodes", summary.inodes),
        )
    };
    let refused = |text: &str| format!("LAYER is not an image of a layer, or is damaged: {text}");
    check(
        "stored",
        judge,
        &[
            ("both.erofs", "3 inodes"),
            ("everything.erofs", "10 inodes"),
            ("loop.erofs", &refused("inode 1: a directory has two names")),
            (
                "names.erofs",
                &refused("inode 1: a name of its entries is malformed"),
            ),
            (
                "outside.erofs",
                &refused("inode 1099511627776: it lies outside the image"),
            ),
            ("type.erofs", &refused("inode 1: its type is none")),
        ],
    );
}
