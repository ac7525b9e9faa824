//! Archives of GNU tar, in all its formats, as images.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_image::{Source, Stage, erofs};

use crate::oracle::{Image, Listing, assert_same, can_mount, list, run};
use crate::trees::make_everything;

pub(crate) fn pack(tree: &Path, archive: &Path, options: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(options)
        .args(["--numeric-owner", "--warning=no-file-ignored", "-C"])
        .arg(tree);
    run(tar.arg("-cf").arg(archive).arg("."));
}

/// What an archive of this tree can hold: no sockets, and without PAX neither attributes nor parts of seconds.
fn expected(tree: &Path, is_pax: bool) -> Listing {
    let mut listing = list(tree);
    listing.remove(&b"./socket"[..]);
    for facts in listing.values_mut().filter(|_| !is_pax) {
        facts.xattrs.clear();
        facts.mtime.1 = 0;
    }
    listing
}

fn check(options: &[&str], is_pax: bool, compress: impl Fn(&Path) -> PathBuf) {
    let tree = tempfile::tempdir().unwrap();
    make_everything(tree.path());
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("archive");
    pack(tree.path(), &archive, options);
    let source = Source::detect(compress(&archive)).unwrap();
    assert!(matches!(source, Source::Archive(_)));
    let image = Image::write(&source);
    image.check();
    assert_same(&list(image.mount().path()), &expected(tree.path(), is_pax));
}

fn plain(archive: &Path) -> PathBuf {
    archive.to_path_buf()
}

pub(crate) const PAX: [&str; 5] = [
    "--format=posix",
    "--xattrs",
    "--xattrs-include=*",
    "--sparse",
    "--acls",
];

#[test]
fn pax_archives_with_attributes_and_holes() {
    if can_mount("pax_archives_with_attributes_and_holes") {
        check(&PAX, true, plain);
    }
}

#[test]
fn gnu_archives_with_long_names_and_holes() {
    if can_mount("gnu_archives_with_long_names_and_holes") {
        check(&["--format=gnu", "--sparse"], false, plain);
    }
}

#[test]
fn gzip_and_zstd_archives() {
    if !can_mount("gzip_and_zstd_archives") {
        return;
    }
    check(&PAX, true, |archive| {
        let packed = archive.with_extension("packed");
        let mut encoder =
            flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), flate2::Compression::fast());
        encoder.write_all(&fs::read(archive).unwrap()).unwrap();
        encoder.finish().unwrap();
        packed
    });
    check(&PAX, true, |archive| {
        let packed = archive.with_extension("packed");
        fs::write(
            &packed,
            zstd::encode_all(&fs::read(archive).unwrap()[..], 1).unwrap(),
        )
        .unwrap();
        packed
    });
}

#[test]
fn progress_grows_to_the_end() {
    let tree = tempfile::tempdir().unwrap();
    for index in 0..2000 {
        fs::write(tree.path().join(format!("{index}")), vec![1; 9000]).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("archive");
    pack(tree.path(), &archive, &["--format=gnu"]);
    let out = tempfile::tempfile().unwrap();
    let mut reports = Vec::new();
    erofs::write(&Source::Archive(archive.clone()), &out, &mut |progress| {
        reports.push(progress)
    })
    .unwrap();
    let reading: Vec<_> = reports
        .iter()
        .filter(|report| report.stage == Stage::Reading)
        .collect();
    assert!(reading.len() >= 4, "{}", reading.len());
    assert!(
        reading
            .windows(2)
            .all(|pair| pair[0].done_bytes <= pair[1].done_bytes)
    );
    let size = fs::metadata(&archive).unwrap().len();
    assert!(
        reading
            .iter()
            .all(|report| report.total_bytes == Some(size) && report.done_bytes <= size)
    );
    let last = reports.last().unwrap();
    assert_eq!((last.stage, last.entries), (Stage::Writing, 2001));
    assert_eq!(Some(last.done_bytes), last.total_bytes);
}
