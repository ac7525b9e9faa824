//! Archives that are broken or mean harm. Each is refused by name or contained; nothing of the host is touched.

use std::fs;
use std::io::Write;

use kata_image::{Source, erofs};
use tar::{EntryType, Header};

use crate::forged::Forged;
use crate::oracle::{Image, can_mount, chain, list};

fn write(archive: &[u8]) -> Result<Image, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    Image::try_write(&Source::Archive(file.path().into()))
        .map_err(|error| chain(&error).replace(&file.path().display().to_string(), "ARCHIVE"))
}

fn refused(archive: Vec<u8>, expected: &str) {
    match write(&archive) {
        Ok(_) => panic!("accepted instead of: {expected}"),
        Err(error) => assert!(error.contains(expected), "{error}\ninstead of: {expected}"),
    }
}

fn forged() -> Forged {
    Forged::default()
}

#[test]
fn paths_that_leave_the_root_are_refused_by_name() {
    refused(
        forged().file("../etc/passwd", "x").end(),
        "holds an entry that is refused: ../etc/passwd leaves the root",
    );
    refused(forged().file("a/../../b", "x").end(), "a/../../b leaves the root");
    let through = |target: &[u8]| {
        forged()
            .add(EntryType::Symlink, b"l", target, b"")
            .file("l/passwd", "x")
            .end()
    };
    refused(through(b"/etc"), "l/passwd lies below the symbolic link l");
    refused(through(b"../.."), "l/passwd lies below the symbolic link l");
    let twice = forged()
        .add(EntryType::Directory, b"d", b"", b"")
        .add(EntryType::Symlink, b"d/up", b"..", b"")
        .add(EntryType::Symlink, b"e", b"d/up", b"")
        .file("e/x", "")
        .end();
    refused(twice, "e/x lies below the symbolic link e");
    refused(
        forged().add(EntryType::Link, b"h", b"../x", b"").end(),
        "../x leaves the root",
    );
    refused(
        forged().add(EntryType::Link, b"h", b"/etc/passwd", b"").end(),
        "h is a hard link to etc/passwd",
    );
}

#[test]
fn types_that_clash_are_refused_by_name() {
    let clash = "a is both a directory and something else";
    refused(
        forged()
            .add(EntryType::Directory, b"a", b"", b"")
            .file("a", "")
            .end(),
        clash,
    );
    refused(
        forged()
            .file("a", "")
            .add(EntryType::Directory, b"a", b"", b"")
            .end(),
        clash,
    );
    refused(
        forged().file("a", "").file("a/b", "").end(),
        "a/b lies below a, which is no directory",
    );
    refused(
        forged()
            .add(EntryType::Directory, b"d", b"", b"")
            .add(EntryType::Link, b"h", b"d", b"")
            .end(),
        "h is a hard link to d",
    );
}

#[test]
fn broken_archives_are_refused() {
    let whole = forged().file("a", &"x".repeat(1000)).end();
    refused(Vec::new(), "ARCHIVE is not a tar archive");
    refused(whole[..700].to_vec(), "the archive ends in the middle");
    refused(whole[..512 + 1024].to_vec(), "the archive ends in the middle");
    let mut damaged = [forged().file("a", "").0, whole.clone()].concat();
    damaged[512] ^= 1;
    refused(
        damaged,
        "a header at byte 512 of the archive has a wrong checksum",
    );
    let packed = zstd::encode_all(&whole[..], 1).unwrap();
    refused(
        packed[..packed.len() - 3].to_vec(),
        "the archive ends in the middle",
    );
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&whole).unwrap();
    let mut packed = encoder.finish().unwrap();
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    refused(packed, "the archive cannot be read or decompressed");
    refused(
        forged().add(EntryType::new(b'V'), b"volume", b"", b"").end(),
        "entries of type 'V' are not supported",
    );
    refused(
        forged().pax(&[("path", b"x")]).end(),
        "the archive ends in the middle",
    );
    refused(
        [whole, vec![0; 17 << 20]].concat(),
        "bytes follow the archive's end marker",
    );
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_read() {
    let sized = |size: &[u8]| forged().pax(&[("size", size)]).file("a", "").end();
    refused(
        sized(b"9000000000000000000"),
        "a makes the image larger than 137438953472 bytes",
    );
    refused(
        sized(b"18446744073709551615"),
        "a: the header's size is not valid",
    );
    refused(
        sized(b"99999999999999999999"),
        "a: the header's size is not valid",
    );
    refused(sized(b"-1"), "a: the header's size is not valid");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    refused(
        forged().raw(&header, b"").end(),
        "a long name of 1099511627776 bytes at byte 512",
    );
    header.set_entry_type(EntryType::XHeader);
    header.set_cksum();
    refused(
        forged().raw(&header, b"").end(),
        "a PAX header of 1099511627776 bytes at byte 512",
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let lie = "a: the map of this sparse file is not valid";
    let sparse = |records: &[(&str, &[u8])], map: &str| forged().pax(records).file("a", map).end();
    let version: [(&str, &[u8]); 3] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"100"),
    ];
    let block = |map: &str, data: &str| format!("{map:\0<512}{data}");
    refused(sparse(&version, &block("1\n99\n2\n", "xx")), lie);
    refused(sparse(&version, &block("2\n50\n1\n40\n1\n", "xx")), lie);
    refused(sparse(&version, &block("1\n0\n1\n", "xx")), lie);
    refused(sparse(&version, &block("999999999\n", "")), lie);
    refused(sparse(&version, "1\n0\n"), lie);
    refused(sparse(&[("GNU.sparse.map", b"0,1")], "x"), lie);
    let huge: [(&str, &[u8]); 2] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.realsize", b"9000000000000000000"),
    ];
    refused(sparse(&huge, &block("0\n", "")), "a makes the image larger than");
    assert!(write(&sparse(&version, &block("1\n98\n2\n", "xx"))).is_ok());
}

#[test]
fn names_that_linux_cannot_hold_are_refused() {
    let long = "n".repeat(256);
    refused(
        forged().pax(&[("path", long.as_bytes())]).file("a", "").end(),
        "has a name that no Linux filesystem can hold",
    );
    refused(
        forged().pax(&[("path", b"a\0b")]).file("a", "").end(),
        "has a name that no Linux filesystem can hold",
    );
    let deep = "d/".repeat(2100);
    refused(
        forged().pax(&[("path", deep.as_bytes())]).file("a", "").end(),
        "has a name that no Linux filesystem can hold",
    );
    refused(
        forged().add(EntryType::Symlink, b"l", b"", b"").end(),
        "l is a symbolic link with a target that Linux does not accept",
    );
    refused(
        forged()
            .pax(&[("SCHILY.xattr.system.what", b"x")])
            .file("a", "")
            .end(),
        "its namespace is not known",
    );
    refused(
        forged()
            .pax(&[("SCHILY.acl.access", b"user:joe:rwx")])
            .file("a", "")
            .end(),
        "names a user or group without its number",
    );
    refused(
        forged().pax(&[("uid", b"4294967296")]).file("a", "").end(),
        "a: the header's uid is not valid",
    );
    refused(
        forged()
            .add(EntryType::XHeader, b"pax", b"", b"nonsense")
            .file("a", "")
            .end(),
        "a PAX record at byte 512 of the archive is malformed",
    );
}

#[test]
fn a_bomb_of_entries_stops_at_the_limit() {
    let mut bomb = forged();
    for index in 0..100 {
        bomb = bomb.file(&format!("{index}"), "");
    }
    let mut plain = tempfile::NamedTempFile::new().unwrap();
    plain.write_all(&bomb.end()).unwrap();
    let mut packed = tempfile::NamedTempFile::new().unwrap();
    let bytes = zstd::encode_all(&fs::read(plain.path()).unwrap()[..], 1).unwrap();
    packed.write_all(&bytes).unwrap();
    let out = tempfile::tempfile().unwrap();
    let write = |file: &tempfile::NamedTempFile, limits| {
        let source = Source::Archive(file.path().into());
        let written = erofs::write_within(&source, &out, &limits, &mut |_| {});
        written.map_err(|error| chain(&error).replace(&file.path().display().to_string(), "ARCHIVE"))
    };
    let within = |limits| write(&packed, limits);
    let limits = erofs::Limits {
        entries: 100,
        ..erofs::Limits::default()
    };
    assert_eq!(within(limits), Err("more than 100 entries".to_owned()));
    assert!(
        within(erofs::Limits {
            entries: 101,
            ..limits
        })
        .is_ok()
    );
    let small = erofs::Limits {
        image_bytes: 4096,
        ..erofs::Limits::default()
    };
    assert_eq!(
        write(&plain, small),
        Err(". makes the image larger than 4096 bytes".to_owned())
    );
    let unpacks = format!(
        "{} bytes of the archive unpack to more than the limit of 4096 bytes",
        bytes.len()
    );
    assert_eq!(
        within(small),
        Err(format!("the archive ARCHIVE is broken: {unpacks}"))
    );
}

#[test]
fn what_is_odd_but_harmless_is_contained() {
    if !can_mount("what_is_odd_but_harmless_is_contained") {
        return;
    }
    let archive = forged()
        .file("/absolute", "a")
        .file("./x/./y//z", "parents are made")
        .file("twice", "first")
        .add(EntryType::Link, b"kept", b"twice", b"")
        .file("twice", "second")
        .add(EntryType::Symlink, b"turned", b"nowhere", b"")
        .file("turned", "into a file")
        .add(EntryType::Symlink, b"out", b"/etc/passwd", b"")
        .add(EntryType::Char, b"d/.wh.gone", b"", b"")
        .add(EntryType::Regular, b"old/", b"", b"")
        .add(EntryType::Regular, b"\xff\xfe", b"", b"bytes")
        .end();
    let image = write(&archive).unwrap();
    image.check();
    let mounted = image.mount();
    let read = |path: &str| fs::read_to_string(mounted.join(path)).unwrap();
    assert_eq!(read("absolute"), "a");
    assert_eq!(read("x/y/z"), "parents are made");
    assert_eq!(read("twice"), "second");
    assert_eq!(read("kept"), "first");
    assert_eq!(read("turned"), "into a file");
    let listing = list(mounted.path());
    assert_eq!(listing[&b"./out"[..]].contents, b"/etc/passwd");
    assert_eq!(listing[&b"./x"[..]].mode, 0o040_755);
    assert_eq!(listing[&b"./d/.wh.gone"[..]].device, 0);
    assert_eq!(listing[&b"./old"[..]].mode, 0o040_644);
    assert!(listing.contains_key(&b"./\xff\xfe"[..]));
    assert_eq!(listing.len(), 13);
}

#[test]
fn numbers_that_were_left_out_are_zero() {
    if !can_mount("numbers_that_were_left_out_are_zero") {
        return;
    }
    let mut header = Header::new_ustar();
    header.set_path("blank").unwrap();
    header.set_cksum();
    let mut spaces = Header::new_gnu();
    spaces.set_path("spaces").unwrap();
    spaces.set_entry_type(EntryType::Char);
    let fields = spaces.as_gnu_mut().unwrap();
    for field in [&mut fields.mode, &mut fields.uid, &mut fields.gid] {
        field.fill(b' ');
    }
    fields.mtime.fill(b' ');
    spaces.set_cksum();
    let image = write(&forged().raw(&header, b"").raw(&spaces, b"").end()).unwrap();
    let mounted = image.mount();
    let listing = list(mounted.path());
    let facts = |name: &[u8]| {
        let facts = &listing[name];
        (facts.mode, facts.owner, facts.mtime.0, facts.device)
    };
    assert_eq!(facts(b"./blank"), (0o100_000, (0, 0), 0, 0));
    assert_eq!(facts(b"./spaces"), (0o020_000, (0, 0), 0, 0));
}

#[test]
fn nothing_is_made_on_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("made");
    let path = target.display().to_string();
    let image = write(&forged().file(&path, "x").end()).unwrap();
    image.check();
    assert!(!target.exists());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// An empty file with one attribute of 60 kB, `count` times, packed to next to nothing.
fn bomb_of_attributes(count: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut packed = zstd::Encoder::new(file.as_file_mut(), 1).unwrap();
    let value = vec![b'x'; 60_000];
    for index in 0..count {
        let member = forged().pax(&[("SCHILY.xattr.user.a", &value)]);
        packed.write_all(&member.file(&index.to_string(), "").0).unwrap();
    }
    packed.write_all(&[0; 1024]).unwrap();
    packed.finish().unwrap();
    file
}

#[test]
fn a_bomb_of_attributes_stops_at_the_default_limit() {
    let bomb = bomb_of_attributes(5000);
    assert!(bomb.as_file().metadata().unwrap().len() < 4 << 20);
    let out = tempfile::tempfile().unwrap();
    let written = erofs::write(&Source::Archive(bomb.path().into()), &out, &mut |_| {});
    let expected = "more than 268435456 bytes of names, link targets and extended attributes";
    assert_eq!(written.unwrap_err().to_string(), expected);
}

#[test]
fn pax_records_do_not_pile_up() {
    let half = vec![b'x'; 600_000];
    let one = |key| forged().pax(&[(key, &half)]).0;
    let mut archive = one("comment.a");
    archive.extend(one("comment.b"));
    archive.extend(forged().file("f", "").end());
    refused(
        archive,
        "a run of PAX headers of 1200018 bytes at byte 601088 of the archive is more than the limit of 1048576",
    );
}

#[test]
fn names_of_links_and_of_the_hosts_directories_are_charged() {
    let limits = erofs::Limits {
        metadata_bytes: 64 << 10,
        ..erofs::Limits::default()
    };
    let out = tempfile::tempfile().unwrap();
    let refused = |source: &Source| {
        let written = erofs::write_within(source, &out, &limits, &mut |_| {});
        assert!(
            matches!(written, Err(erofs::Error::TooMuchMetadata { limit }) if limit == 64 << 10),
            "{written:?}"
        );
    };
    let directory = tempfile::tempdir().unwrap();
    let mut links = forged().file("f", "");
    fs::write(directory.path().join("f"), "").unwrap();
    for index in 0..300 {
        let name = format!("{index:099}");
        links = links.add(EntryType::Link, name.as_bytes(), b"f", b"");
        fs::hard_link(directory.path().join("f"), directory.path().join(name)).unwrap();
    }
    let mut archive = tempfile::NamedTempFile::new().unwrap();
    archive.write_all(&links.end()).unwrap();
    refused(&Source::Archive(archive.path().into()));
    refused(&Source::Directory(directory.path().into()));
}
