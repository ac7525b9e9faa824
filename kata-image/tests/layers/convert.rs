//! What becomes of one layer.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use kata_image::layer::{Link, Notes};
use sha2::{Digest as _, Sha256};
use tar::EntryType::{Char, Directory, Link as HardLink, Symlink};

use crate::forged::Forged;
use crate::oracle::{can_mount, chain, list};
use crate::stack::{Layers, convert, create};

pub(crate) fn forged() -> Forged {
    Forged::default()
}

pub(crate) fn dir(archive: Forged, path: &str) -> Forged {
    archive.add(Directory, path.as_bytes(), b"", b"")
}

fn notes(archive: &[u8]) -> Notes {
    convert(archive, &tempfile::tempfile().unwrap())
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
        .notes
}

pub(crate) fn refused(archive: &[u8], expected: &str) {
    match convert(archive, &tempfile::tempfile().unwrap()) {
        Ok(_) => panic!("accepted instead of: {expected}"),
        Err(error) => assert_eq!(chain(&error), expected),
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn the_digest_is_that_of_the_whole_unpacked_stream() {
    let mut archive = dir(forged(), "d").file("d/f", "contents").end();
    archive.extend([0; 9000]);
    let expected = format!("sha256:{}", hex::encode(Sha256::digest(&archive)));
    let (front, back) = archive.split_at(700);
    let members = [gzip(front), gzip(back)].concat();
    let zstd = zstd::encode_all(&*archive, 3).unwrap();
    let frames = [
        zstd::encode_all(front, 3).unwrap(),
        vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7],
        zstd::encode_all(back, 3).unwrap(),
    ];
    let mut images = Vec::new();
    for (kind, packed) in [
        ("plain", archive.clone()),
        ("gzip", gzip(&archive)),
        ("gzip in members", members),
        ("zstd", zstd),
        ("zstd in frames", frames.concat()),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let converted = convert(&packed, &crate::stack::create(&path)).unwrap();
        assert_eq!(converted.diff_id.as_str(), expected, "{kind}");
        assert!(converted.notes.is_self_contained());
        images.push(fs::read(&path).unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]), "images differ");
}

/// What every machine has to get, of any maker and at any time: whoever changes the form changes these, and the number
/// in the store's keys (`store/index.rs`).
const EVERYWHERE: [(&str, &str); 2] = [
    (
        "layer/everything.tar",
        "7465e5388234f3da9802b83a31d0a6d1c01bea5f9ea0d9c3e6e2dea39928b8ab",
    ),
    (
        "archive/everything-pax.tar",
        "701f0d904de58641b90c63fce058652f72c293729673b544f91189d096d44fd2",
    ),
];

#[test]
fn a_layer_gives_the_same_bytes_on_every_machine() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for (name, expected) in EVERYWHERE {
        let archive = fs::read(corpus.join(name)).unwrap();
        for stream in [gzip(&archive), zstd::encode_all(&*archive, 3).unwrap(), archive] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image");
            convert(&stream, &create(&path)).unwrap();
            let found = hex::encode(Sha256::digest(fs::read(&path).unwrap()));
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn a_layer_may_change_nothing() {
    for archive in [forged().end(), gzip(&forged().end())] {
        let converted = convert(&archive, &tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(converted.summary.inodes, 1);
        assert!(converted.notes.is_self_contained());
    }
    refused(
        b"",
        "LAYER is not a tar archive, plain or compressed with gzip or zstd",
    );
    refused(
        &[0; 511],
        "LAYER is not a tar archive, plain or compressed with gzip or zstd",
    );
}

#[test]
fn whiteouts_are_what_overlayfs_knows() {
    if !can_mount("whiteouts_are_what_overlayfs_knows") {
        return;
    }
    let archive = dir(forged(), "d")
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "")
        .file(".wh.file", "")
        .file(".wh..wh.plnk", "")
        .file(".wh..hidden", "")
        .add(Directory, b".wh..wh.aufs", b"", b"")
        .file(".wh..wh.aufs/x", "x")
        .end();
    let layers = Layers::convert(&[archive]);
    assert!(layers.converted[0].notes.is_self_contained());
    let stack = layers.mount();
    assert_eq!(names(stack.layer(0)), [".hidden", "d", "file"]);
    let status = fs::symlink_metadata(stack.layer(0).join("file")).unwrap();
    assert!(status.file_type().is_char_device() && status.rdev() == 0);
    let opaque = xattr::get(stack.layer(0).join("d"), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    // Below an opaque directory nothing is, so nothing is whited out there.
    assert!(names(&stack.layer(0).join("d")).is_empty());
}

#[test]
fn an_entry_of_the_same_layer_wins_over_its_whiteout() {
    if !can_mount("an_entry_of_the_same_layer_wins_over_its_whiteout") {
        return;
    }
    let lower = dir(dir(forged(), "a"), "b")
        .file("a/old", "")
        .file("b/old", "")
        .file("f", "old");
    let before = forged().file(".wh.a", "").file(".wh.f", "").file("f", "new");
    let after = dir(dir(before, "a"), "b")
        .file("a/new", "")
        .file("b/new", "")
        .file(".wh.b", "");
    let layers = Layers::convert(&[lower.end(), after.end()]);
    assert!(layers.converted[1].notes.is_self_contained());
    let stack = layers.mount();
    assert_eq!(names(&stack.merged().join("a")), ["new"]);
    assert_eq!(names(&stack.merged().join("b")), ["new"]);
    assert_eq!(fs::read(stack.merged().join("f")).unwrap(), b"new");
}

#[test]
fn what_is_left_to_lower_layers_is_noted() {
    let implied = |notes: &Notes| notes.implied_directories;
    assert_eq!(implied(&notes(&forged().file("a/b/c", "").end())), 2);
    assert_eq!(implied(&notes(&dir(forged().file("a/b/c", ""), "a").end())), 1);
    assert_eq!(implied(&notes(&forged().file("a/.wh.b", "").end())), 1);
    assert_eq!(
        implied(&notes(
            &forged().file("a/.wh..wh..opq", "").file("a/b/c", "").end()
        )),
        1
    );
    assert_eq!(
        implied(&notes(&forged().file(".wh.a", "").file("a/b/c", "").end())),
        0
    );
    assert!(notes(&forged().file(".wh..wh..opq", "").end()).opaque_root);
    let link = |path: &str, target: &str| Link {
        path: path.into(),
        target: target.into(),
    };
    let links = forged()
        .add(HardLink, b"one", b"lower/file", b"")
        .add(HardLink, b"two", b"./one", b"")
        .add(HardLink, b"lost", b"other", b"")
        .file("lost", "an entry that comes later")
        .file("here", "")
        .add(HardLink, b"three", b"here", b"")
        .end();
    let notes = notes(&links);
    assert_eq!(
        notes.links,
        [link("one", "lower/file"), link("two", "lower/file")]
    );
    assert!(!notes.is_self_contained() && !notes.can_be_lowest());
}

#[test]
fn overlayfs_takes_no_orders_from_an_archive() {
    if !can_mount("overlayfs_takes_no_orders_from_an_archive") {
        return;
    }
    let orders: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/secret"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
        ("SCHILY.xattr.com.apple.provenance", b"x"),
        ("SCHILY.xattr.user.mine", b"1"),
    ];
    let lower = dir(dir(forged(), "d"), "secret")
        .file("d/f", "")
        .file("secret/s", "");
    let upper = dir(forged().pax(&orders), "d");
    let layers = Layers::convert(&[lower.end(), upper.end()]);
    assert_eq!(layers.converted[1].summary.xattrs_left_out, 5);
    assert!(layers.converted[1].notes.is_self_contained());
    let stack = layers.mount();
    let facts = &list(stack.layer(1))[&b"./d"[..]];
    assert_eq!(facts.xattrs.keys().collect::<Vec<_>>(), [b"user.mine"]);
    assert_eq!(names(&stack.merged().join("d")), ["f"]);
}

#[test]
fn what_no_layer_can_have_is_refused_by_name() {
    let entry = |text: &str| format!("LAYER holds an entry that is refused: {text}");
    for name in [".wh.", "d/.wh..", ".wh...", ".wh.a/b"] {
        let archive = forged().file(name, "").end();
        refused(
            &archive,
            &entry(&format!("{name} is no whiteout that a layer can have")),
        );
    }
    refused(
        &forged().add(Char, b"dev/x", b"", b"").end(),
        &entry("dev/x is a character device 0:0, which overlayfs takes for a whiteout"),
    );
    let missing = "which is not an earlier file of the archive";
    refused(
        &forged().add(HardLink, b"h", b".wh..wh.plnk/1.2", b"").end(),
        &entry(&format!("h is a hard link to .wh..wh.plnk/1.2, {missing}")),
    );
    refused(
        &forged().add(HardLink, b"h", b"../x", b"").end(),
        &entry("../x leaves the root"),
    );
    refused(
        &forged().add(HardLink, b"h", b"lower", b"").file("h/x", "").end(),
        &entry("h/x lies below h, which is no directory"),
    );
    refused(
        &dir(forged().add(HardLink, b"h", b"lower", b""), "h").end(),
        &entry("h is both a directory and something else"),
    );
    refused(
        &forged()
            .add(Symlink, b"l", b"/etc", b"")
            .file("l/.wh.passwd", "")
            .end(),
        &entry("l lies below the symbolic link l"),
    );
    refused(
        &forged().file("d", "").file("d/.wh..wh..opq", "").end(),
        &entry("d lies below d, which is no directory"),
    );
}
