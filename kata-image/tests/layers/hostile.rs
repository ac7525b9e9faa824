//! Layers that are broken or mean harm: each is refused by name or contained.

use std::io::Read;

use kata_image::erofs::Limits;
use proptest::prelude::*;
use tar::EntryType::{self, Directory, Link as HardLink, Symlink};

use crate::convert::{dir, forged, gzip, refused};
use crate::oracle::chain;
use crate::stack::{Layers, convert, convert_within};

fn within(archive: &[u8], limits: &Limits) -> String {
    match convert_within(archive, &tempfile::tempfile().unwrap(), limits) {
        Ok(converted) => format!("{} inodes", converted.summary.inodes),
        Err(error) => chain(&error),
    }
}

fn entry(text: &str) -> String {
    format!("LAYER holds an entry that is refused: {text}")
}

fn broken(text: &str) -> String {
    format!("the archive LAYER is broken: {text}")
}

#[test]
fn a_bomb_ends_at_the_limit_whatever_its_bytes_are_for() {
    let limits = Limits {
        image_bytes: 8 << 20,
        ..Limits::default()
    };
    let zeros = vec![0; 64 << 20];
    let file = forged().add(EntryType::Regular, b"f", b"", &zeros).end();
    let whiteout = forged().add(EntryType::Regular, b".wh.f", b"", &zeros).end();
    let aufs = forged().add(EntryType::Regular, b".wh..wh.x", b"", &zeros).end();
    let directory = forged().add(Directory, b"d", b"", &zeros).end();
    let padding = [forged().file("f", "").end(), zeros].concat();
    for (name, archive) in [
        ("whiteout", whiteout),
        ("aufs", aufs),
        ("directory", directory),
        ("padding", padding),
    ] {
        for packed in [gzip(&archive), zstd::encode_all(&*archive, 3).unwrap()] {
            let text = within(&packed, &limits);
            let expected = format!(
                "{} bytes of the archive unpack to more than the limit of 8388608 bytes",
                packed.len()
            );
            assert_eq!(text, broken(&expected), "{name}");
        }
    }
    let text = within(&gzip(&file), &limits);
    assert_eq!(text, "f makes the image larger than 8388608 bytes");
}

#[test]
fn more_than_padding_after_the_end_is_refused() {
    let mut archive = forged().file("f", "").end();
    archive.resize(archive.len() + (17 << 20), 1);
    refused(
        &archive,
        &broken("more than 16777216 bytes follow the archive's end marker"),
    );
    let mut garbage = gzip(&forged().file("f", "").end());
    garbage.extend(b"garbage that is no member of gzip");
    let text = within(&garbage, &Limits::default());
    assert!(
        text.starts_with(&broken("the archive cannot be read or decompressed")),
        "{text}"
    );
}

#[test]
fn a_cut_or_damaged_stream_is_never_a_layer_of_its_own() {
    let archive = dir(forged(), "d")
        .file("d/f", &"contents ".repeat(300))
        .file(".wh.x", "")
        .end();
    for packed in [gzip(&archive), zstd_with_checksum(&archive)] {
        let whole = convert(&packed, &tempfile::tempfile().unwrap()).unwrap();
        for length in 0..packed.len() {
            assert!(
                convert(&packed[..length], &tempfile::tempfile().unwrap()).is_err(),
                "{length}"
            );
        }
        for offset in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[offset] ^= 0x55;
            // Some bytes mean nothing, such as the time in gzip's header.
            if let Ok(converted) = convert(&damaged, &tempfile::tempfile().unwrap()) {
                assert_eq!(converted.diff_id, whole.diff_id, "{offset}");
            }
        }
    }
}

fn zstd_with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    std::io::copy(&mut &*bytes, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A million entries and more, made while they are read.
struct Endless {
    part: Vec<u8>,
    position: usize,
    count: u64,
    path: fn(u64) -> String,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.position == self.part.len() {
            self.count += 1;
            self.part = forged().file(&(self.path)(self.count), "").0;
            self.position = 0;
        }
        let count = buffer.len().min(self.part.len() - self.position);
        buffer[..count].copy_from_slice(&self.part[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

#[test]
fn entries_without_end_stop_at_a_limit_of_entries_or_of_memory() {
    let limits = Limits {
        entries: 20_000,
        metadata_bytes: 8 << 20,
        ..Limits::default()
    };
    let few = Limits {
        entries: 5000,
        ..limits
    };
    let memory = "more than 8388608 bytes of names, link targets and extended attributes";
    let paths: [fn(u64) -> String; 3] = [
        |count| format!("{count}"),
        |count| format!(".wh.{count}"),
        |count| format!("d/{count}/.wh..wh..opq"),
    ];
    for path in paths {
        let endless = || Endless {
            part: Vec::new(),
            position: 0,
            count: 0,
            path,
        };
        let convert = |limits: &Limits| {
            let out = tempfile::tempfile().unwrap();
            let label = std::path::Path::new("LAYER");
            let converted = kata_image::layer::convert(endless(), label, &out, limits, &mut |_| {});
            chain(&converted.map(drop).unwrap_err())
        };
        assert_eq!(convert(&few), "more than 5000 entries", "{}", path(0));
        let text = convert(&limits);
        assert!(text == "more than 20000 entries" || text == memory, "{text}");
    }
    // One whiteout again and again takes no more than once, but its name's memory is charged each time.
    let again = Endless {
        part: Vec::new(),
        position: 0,
        count: 0,
        path: |_| ".wh.same".to_owned(),
    };
    let out = tempfile::tempfile().unwrap();
    let label = std::path::Path::new("LAYER");
    let converted = kata_image::layer::convert(again, label, &out, &limits, &mut |_| {});
    assert_eq!(chain(&converted.map(drop).unwrap_err()), memory);
}

#[test]
fn names_are_bytes_within_the_limits_of_linux() {
    let long = |length: usize| "n".repeat(length);
    let pax = |path: &[u8]| forged().pax(&[("path", path)]).file("short", "x").end();
    let archives = [pax(b"\xff\xfe/\xc3("), pax(long(255).as_bytes())];
    for archive in &archives {
        convert(archive, &tempfile::tempfile().unwrap()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let name = long(256);
    refused(
        &pax(name.as_bytes()),
        &entry(&format!("{name} has a name that no Linux filesystem can hold")),
    );
    let whiteout = format!(".wh.{}", long(251));
    let converted = convert(&pax(whiteout.as_bytes()), &tempfile::tempfile().unwrap()).unwrap();
    assert_eq!(converted.notes.whiteouts, 1);
    let whiteout = format!(".wh.{}", long(252));
    refused(
        &pax(whiteout.as_bytes()),
        &entry(&format!(
            "{whiteout} has a name that no Linux filesystem can hold"
        )),
    );
}

#[test]
fn pax_records_are_held_to_what_they_say() {
    let file = |records: &[(&str, &[u8])]| forged().pax(records).file("f", "abc").end();
    refused(
        &file(&[("size", b"-1")]),
        &broken("f: the header's size is not valid"),
    );
    refused(
        &file(&[("size", b"18446744073709551615")]),
        &broken("f: the header's size is not valid"),
    );
    let larger = within(&file(&[("size", b"9000000000000000000")]), &Limits::default());
    assert_eq!(larger, "f makes the image larger than 137438953472 bytes");
    refused(
        &file(&[("uid", b"4294967296")]),
        &broken("f: the header's uid is not valid"),
    );
    // A whiteout by its long name is one, and a file that only its short name calls so is none.
    let notes = |archive: &[u8]| convert(archive, &tempfile::tempfile().unwrap()).unwrap().notes;
    assert_eq!(notes(&file(&[("path", b"d/.wh.gone")])).whiteouts, 1);
    let shown = forged().pax(&[("path", b"shown")]).file(".wh.gone", "").end();
    assert_eq!(notes(&shown).whiteouts, 0);
    let huge = vec![b'x'; 2 << 20];
    let text = within(&file(&[("comment", &huge)]), &Limits::default());
    assert!(
        text.contains("a PAX header of") && text.ends_with("is more than the limit of 1048576"),
        "{text}"
    );
}

#[test]
fn sparse_maps_do_not_reach_beyond_their_file_or_the_limit() {
    let sparse = |map: &str, size: &[u8]| {
        let mut contents = map.as_bytes().to_vec();
        contents.resize(512, 0);
        contents.extend(b"data");
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", size),
        ];
        forged()
            .pax(&records)
            .add(EntryType::Regular, b"f", b"", &contents)
            .end()
    };
    let small = Limits {
        image_bytes: 1 << 30,
        ..Limits::default()
    };
    assert_eq!(within(&sparse("1\n100\n4\n", b"200"), &small), "2 inodes");
    let lies = broken("sparse: the map of this sparse file is not valid");
    for (map, size) in [
        ("1\n100\n4\n", "103"),
        ("2\n100\n2\n50\n2\n", "200"),
        ("1\n0\n5\n", "200"),
        ("9", "200"),
    ] {
        assert_eq!(within(&sparse(map, size.as_bytes()), &small), lies, "{map:?}");
    }
    let text = within(&sparse("1\n100\n4\n", b"1099511627776"), &small);
    assert_eq!(text, "sparse makes the image larger than 1073741824 bytes");
}

#[test]
fn links_through_links_and_loops_are_refused_or_stay_inside() {
    let through = forged()
        .add(Symlink, b"a", b"b", b"")
        .add(Symlink, b"b", b"a", b"")
        .file("a/x", "");
    refused(&through.end(), &entry("a/x lies below the symbolic link a"));
    let twice = forged()
        .file("f", "1")
        .file("f", "2")
        .add(Symlink, b"f", b"/etc/passwd", b"")
        .file("f", "3");
    let converted = convert(&twice.end(), &tempfile::tempfile().unwrap()).unwrap();
    assert_eq!(converted.summary.inodes, 2);
    let itself = forged().add(HardLink, b"h", b"h", b"");
    let layers = Layers::convert(&[forged().file("h", "kept").end(), itself.end()]);
    assert_eq!(layers.merge().summary.inodes, 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_change_to_an_archive_ends(changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..6)) {
        let mut archive = dir(forged(), "d").file("d/.wh.x", "").file("f", "contents")
            .add(HardLink, b"h", b"f", b"").pax(&[("SCHILY.xattr.user.a", b"1")]).file("g", "").end();
        for (offset, value) in changes {
            let length = archive.len();
            archive[offset % length] = value;
        }
        let limits = Limits { image_bytes: 1 << 20, ..Limits::default() };
        if let Ok(converted) = convert_within(&archive, &tempfile::tempfile().unwrap(), &limits) {
            prop_assert!(converted.summary.size_bytes <= 1 << 20);
        }
    }
}
