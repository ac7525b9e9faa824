//! Layers that say more than one layer shows alone: merged as umoci applies them.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use kata_image::erofs::Limits;
use kata_image::layer::{self, Link, Notes};
use tar::EntryType::{Directory, Link as HardLink, Symlink};

use crate::convert::{dir, forged};
use crate::forged::Forged;
use crate::oracle::{Listing, assert_same, can_mount, chain};
use crate::stack::Layers;
use crate::umoci;

/// Merges, and compares everything but the root and `apart` with what umoci makes of the same layers.
fn check(test: &str, archives: &[Forged], apart: &[&str]) -> Option<Listing> {
    if !can_mount(test) || !umoci::has_umoci(test) {
        return None;
    }
    let archives: Vec<_> = archives.iter().map(|archive| archive.clone().end()).collect();
    let mut found = Layers::convert(&archives).merge().list();
    let mut expected = umoci::unpack(&archives);
    for path in [".", "dev"].iter().chain(apart) {
        found.remove(path.as_bytes());
        expected.remove(path.as_bytes());
    }
    assert_same(&found, &expected);
    Some(found)
}

fn has(listing: &Listing, path: &str) -> bool {
    listing.contains_key(path.as_bytes())
}

#[test]
fn whiteouts_and_opaque_directories_take_away_what_is_below() {
    let lower = dir(dir(dir(forged(), "a"), "b"), "b/sub")
        .file("a/kept", "1")
        .file("a/gone", "2")
        .file("b/old", "3")
        .file("b/sub/old", "4");
    let upper = dir(dir(forged(), "a"), "b")
        .file("a/.wh.gone", "")
        .file("a/.wh.never-was", "")
        .file("b/new", "5")
        .file("b/.wh..wh..opq", "");
    let test = "whiteouts_and_opaque_directories_take_away_what_is_below";
    let Some(found) = check(test, &[lower, upper], &[]) else {
        return;
    };
    assert!(has(&found, "./a/kept") && has(&found, "./b/new"));
    assert!(!has(&found, "./a/gone") && !has(&found, "./b/old") && !has(&found, "./a/never-was"));
}

#[test]
fn kinds_replace_each_other() {
    let lower = dir(dir(forged(), "dir"), "dir/sub")
        .file("dir/sub/f", "1")
        .file("file", "2")
        .add(Symlink, b"link", b"dir", b"");
    let upper = dir(dir(forged().file("dir", "now a file"), "file"), "link")
        .file("file/f", "3")
        .file("link/f", "4");
    let Some(found) = check("kinds_replace_each_other", &[lower, upper], &[]) else {
        return;
    };
    assert!(has(&found, "./link/f") && !has(&found, "./dir/sub"));
}

/// Conformance: semantics 24
#[test]
fn implied_directories_keep_what_is_below() {
    let mut header = tar::Header::new_gnu();
    header.set_path("tmp").unwrap();
    header.set_entry_type(Directory);
    header.set_mode(0o1777);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_600_000_000);
    header.set_size(0);
    header.set_cksum();
    let lower = dir(dir(forged().raw(&header, b""), "usr"), "usr/lib")
        .add(Symlink, b"lib", b"usr/lib", b"")
        .file("usr/lib/gone", "");
    let upper = forged()
        .file("tmp/f", "1")
        .file("lib/g", "2")
        .file("lib/.wh.gone", "");
    let test = "implied_directories_keep_what_is_below";
    let Some(found) = check(test, &[lower, upper], &[]) else {
        return;
    };
    let tmp = &found[&b"./tmp"[..]];
    assert_eq!((tmp.mode & 0o7777, tmp.owner), (0o1777, (7, 8)));
    assert!(has(&found, "./usr/lib/g") && !has(&found, "./usr/lib/gone"));
}

#[test]
fn links_reach_files_of_lower_layers() {
    let lower = dir(dir(forged(), "usr"), "usr/bin")
        .add(Symlink, b"bin", b"usr/bin", b"")
        .file("usr/bin/a", "shared")
        .file("moved", "was here");
    let upper = forged()
        .add(HardLink, b"b", b"bin/a", b"")
        .add(HardLink, b"c", b"b", b"")
        .add(HardLink, b"usr/bin/d", b"usr/bin/a", b"")
        .add(HardLink, b"there", b"moved", b"")
        .file(".wh.moved", "");
    let Some(found) = check("links_reach_files_of_lower_layers", &[lower, upper], &[]) else {
        return;
    };
    for path in ["./b", "./c", "./usr/bin/a", "./usr/bin/d"] {
        assert_eq!(
            (
                found[path.as_bytes()].links,
                &found[path.as_bytes()].first_path[..]
            ),
            (4, &b"./b"[..]),
            "{path}"
        );
    }
    assert!(has(&found, "./there") && !has(&found, "./moved"));
}

#[test]
fn an_opaque_root_leaves_nothing_of_what_was() {
    let lower = dir(forged(), "a").file("a/f", "1").file("g", "2");
    let upper = dir(forged().file(".wh..wh..opq", ""), "a");
    let Some(found) = check("an_opaque_root_leaves_nothing_of_what_was", &[lower, upper], &[]) else {
        return;
    };
    assert_eq!(found.keys().collect::<Vec<_>>(), [b"./a"]);
}

fn refused(archives: &[Forged], expected: &str) {
    let archives: Vec<_> = archives.iter().map(|archive| archive.clone().end()).collect();
    match Layers::convert(&archives).try_merge() {
        Ok(_) => panic!("accepted instead of: {expected}"),
        Err(error) => assert_eq!(
            chain(&error),
            format!("LAYER holds an entry that is refused: {expected}")
        ),
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let link = |target: &[u8]| forged().add(Symlink, b"l", target, b"");
    let below = forged().file("l/x", "");
    refused(&[link(b"l"), below.clone()], "l/x lies below the symbolic link l");
    refused(
        &[forged().file("l", ""), below],
        "l/x lies below l, which is no directory",
    );
    let hard = |target: &[u8]| forged().add(HardLink, b"h", target, b"");
    let missing = "which is not an earlier file of the archive";
    refused(
        &[forged(), hard(b"gone")],
        &format!("h is a hard link to gone, {missing}"),
    );
    refused(
        &[dir(forged(), "d"), hard(b"d")],
        &format!("h is a hard link to d, {missing}"),
    );
    refused(
        &[link(b"/"), hard(b"l/etc/passwd")],
        &format!("h is a hard link to l/etc/passwd, {missing}"),
    );
}

#[test]
fn links_of_lower_layers_never_lead_to_the_host() {
    let secret = tempfile::tempdir().unwrap();
    let target = secret.path().to_str().unwrap();
    let lower = forged().add(Symlink, b"out", target.as_bytes(), b"");
    let up = forged().add(Symlink, b"up", b"../../../../..", b"");
    let upper = forged().file("out/written", "x").file("up/top", "y");
    let mut both = lower.clone();
    both.0.extend(up.0);
    let layers = Layers::convert(&[both.end(), upper.end()]);
    let flat = layers.merge();
    assert_eq!(fs::read_dir(secret.path()).unwrap().count(), 0);
    if can_mount("links_of_lower_layers_never_lead_to_the_host") {
        let found = flat.list();
        assert!(has(&found, &format!(".{target}/written")) && has(&found, "./top"));
    }
}

#[test]
fn damaged_images_are_errors_whatever_byte_it_is() {
    let archive = dir(forged(), "d")
        .file("d/f", &"contents ".repeat(600))
        .add(HardLink, b"h", b"d/f", b"")
        .add(Symlink, b"l", b"d/f", b"")
        .pax(&[("SCHILY.xattr.user.x", b"value")])
        .file("x", "")
        .end();
    let layers = Layers::convert(&[archive]);
    let whole = fs::read(layers.path(0)).unwrap();
    let notes = Notes::default();
    let mut verdicts = [0, 0];
    for offset in (1024..whole.len()).step_by(19) {
        for value in [0, 0xff, whole[offset] ^ 1, whole[offset] ^ 0x80] {
            let mut damaged = whole.clone();
            damaged[offset] = value;
            let merged = merge_image(&damaged, &notes);
            verdicts[usize::from(merged.is_ok())] += 1;
        }
    }
    assert!(verdicts[0] > 50, "{verdicts:?}");
    for length in (0..whole.len()).step_by(509) {
        assert!(merge_image(&whole[..length], &notes).is_err(), "{length}");
    }
}

fn merge_image(image: &[u8], notes: &Notes) -> Result<(), String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    merge_one(&file, notes)
}

fn merge_one(image: &File, notes: &Notes) -> Result<(), String> {
    let label = Path::new("LAYER");
    let limits = Limits {
        image_bytes: 16 << 20,
        entries: 1000,
        metadata_bytes: 1 << 20,
    };
    let out = tempfile::tempfile().unwrap();
    let merged = layer::merge(
        &[layer::Layer { image, notes, label }],
        &out,
        &limits,
        &mut |_| {},
    );
    merged.map(drop).map_err(|error| chain(&error))
}

#[test]
fn notes_that_lie_are_refused() {
    let layers = Layers::convert(&[dir(forged(), "d").file("f", "").end()]);
    let image = File::open(layers.path(0)).unwrap();
    let link = |path: &str, target: &str| Notes {
        links: vec![Link {
            path: path.into(),
            target: target.into(),
        }],
        ..Notes::default()
    };
    let verdict = |path, target| merge_one(&image, &link(path, target)).unwrap_err();
    assert!(verdict("../x", "f").ends_with("../x leaves the root"));
    assert!(verdict("x", "../f").ends_with("../f leaves the root"));
    assert!(verdict("x", "").ends_with("x is a hard link to ., which is not an earlier file of the archive"));
}
