//! Sizes of images next to those of mkfs.erofs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::oracle::{has_tool, run, skip};
use crate::stack::Layers;

/// Sizes as in a distribution: most of a few hundred bytes, some of several blocks.
fn make_tree(tree: &Path) {
    for index in 0..2000_usize {
        let directory = tree.join(format!("{}", index % 40));
        fs::create_dir_all(&directory).unwrap();
        let size = if index.is_multiple_of(10) {
            20_000 + index
        } else {
            100 + index * 7 % 3000
        };
        let contents: Vec<u8> = (0..=255).cycle().skip(index % 256).take(size).collect();
        fs::write(directory.join(format!("{index}")), contents).unwrap();
    }
}

#[test]
fn images_are_at_most_a_tenth_larger_than_those_of_mkfs() {
    let test = "images_are_at_most_a_tenth_larger_than_those_of_mkfs";
    if !(has_tool("mkfs.erofs") || skip(test, "mkfs.erofs (package erofs-utils) is not installed")) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("tree")).unwrap();
    make_tree(&path("tree"));
    let mut tar = Command::new("tar");
    run(tar
        .arg("-cf")
        .arg(path("layer.tar"))
        .arg("-C")
        .arg(path("tree"))
        .arg("."));
    run(Command::new("mkfs.erofs")
        .arg(path("theirs.erofs"))
        .arg(path("tree")));
    let theirs = fs::metadata(path("theirs.erofs")).unwrap().len();
    let layers = Layers::convert(&[fs::read(path("layer.tar")).unwrap()]);
    let ours = layers.converted[0].summary.size_bytes;
    assert!(
        ours * 10 <= theirs * 11,
        "layer: {ours} bytes, mkfs.erofs: {theirs}"
    );
    let merged = layers.merge().summary.size_bytes;
    assert!(
        merged * 10 <= theirs * 11,
        "merged: {merged} bytes, mkfs.erofs: {theirs}"
    );
}
