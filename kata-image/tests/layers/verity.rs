//! Hash trees against `veritysetup`, which checks them in user space and writes its own to compare with.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use kata_image::Digest;
use kata_image::verity::{self, HashTree, Salt};

use crate::oracle::{has_tool, skip};
use crate::stack::create;

fn has_veritysetup(test: &str) -> bool {
    has_tool("veritysetup") || skip(test, "veritysetup (package cryptsetup-bin) is not installed")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image of so many blocks in which no two are alike.
fn image(path: &Path, blocks: u64) -> File {
    let mut file = create(path);
    for block in 0..blocks {
        file.write_all(&block.to_le_bytes().repeat(512)).unwrap();
    }
    file
}

fn write(directory: &Path, blocks: u64, salt: &Salt) -> HashTree {
    let image = image(&directory.join("image"), blocks);
    verity::write(&image, &create(&directory.join("tree")), salt).unwrap()
}

/// Whether veritysetup accepts image and tree with this root hash.
fn verify(directory: &Path, root_hash: &str) -> bool {
    let mut veritysetup = Command::new("veritysetup");
    veritysetup
        .arg("verify")
        .arg(directory.join("image"))
        .arg(directory.join("tree"))
        .arg(root_hash);
    let output = veritysetup.stdin(Stdio::null()).output().unwrap();
    output.status.success()
}

#[test]
fn veritysetup_accepts_the_tree_and_no_changed_byte() {
    if !has_veritysetup("veritysetup_accepts_the_tree_and_no_changed_byte") {
        return;
    }
    for blocks in [1, 2, 127, 128, 129, 16_384, 16_385] {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let tree = write(at, blocks, &Salt::of(&Digest::of(b"image")));
        assert_eq!(tree.data_blocks, blocks);
        assert_eq!(
            fs::metadata(at.join("tree")).unwrap().len(),
            tree.hash_blocks * 4096
        );
        let root = hex(&tree.root_hash);
        assert!(verify(at, &root), "{blocks} blocks");
        let other = root.replace(&root[..1], if root.starts_with('0') { "1" } else { "0" });
        assert!(!verify(at, &other), "{blocks} blocks");
        let image = File::options().write(true).open(at.join("image")).unwrap();
        image.write_all_at(b"!", (blocks - 1) * 4096 + 77).unwrap();
        assert!(!verify(at, &root), "{blocks} blocks");
    }
}

#[test]
fn the_tree_is_what_veritysetup_writes() {
    if !has_veritysetup("the_tree_is_what_veritysetup_writes") {
        return;
    }
    for (blocks, salt) in [
        (1, vec![]),
        (700, vec![7; 32]),
        (129, (0..=255).collect()),
        (40_000, vec![0xab; 5]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let tree = write(at, blocks, &Salt::new(&salt).unwrap());
        let ours = fs::read(at.join("tree")).unwrap();
        let uuid = hex(&ours[16..32]);
        let uuid = [
            &uuid[..8],
            &uuid[8..12],
            &uuid[12..16],
            &uuid[16..20],
            &uuid[20..],
        ]
        .join("-");
        let salt = if salt.is_empty() {
            "-".to_owned()
        } else {
            hex(&salt)
        };
        let mut veritysetup = Command::new("veritysetup");
        veritysetup
            .arg("format")
            .arg(at.join("image"))
            .arg(at.join("theirs"));
        veritysetup
            .args(["--salt", &salt, "--uuid", &uuid])
            .stdin(Stdio::null());
        let output = veritysetup.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains(&hex(&tree.root_hash)), "{blocks} blocks: {text}");
        assert!(
            fs::read(at.join("theirs")).unwrap() == ours,
            "{blocks} blocks: trees differ"
        );
    }
}

#[test]
fn the_same_image_gives_the_same_tree() {
    let salt = Salt::of(&Digest::of(b"image"));
    let trees: Vec<_> = (0..2)
        .map(|_| {
            let directory = tempfile::tempdir().unwrap();
            let tree = write(directory.path(), 300, &salt);
            (tree, fs::read(directory.path().join("tree")).unwrap())
        })
        .collect();
    assert!(trees[0] == trees[1]);
}
