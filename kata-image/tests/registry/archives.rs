//! Layouts and archives of docker: real ones, and such as want to read the host.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kata_image::{Digest, Image, LayoutError, Platform};
use serde_json::{Value, json};

use crate::programs::{chain, have, image, read_all, run};

fn open(path: &Path, name: Option<&str>) -> Result<Image, LayoutError> {
    let temporary = tempfile::tempdir().unwrap();
    Image::open(path, name, &Platform::host(), temporary.path())
}

fn open_error(path: &Path, name: Option<&str>) -> String {
    let error = open(path, name).map(|image| image.digest()).unwrap_err();
    chain(&error).replace(&path.display().to_string(), "PATH")
}

#[test]
fn what_is_written_as_a_layout_is_read_again() {
    let image = image();
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    image.write_layout(&layout, Some("one"), &mut |_| {}).unwrap();
    let archive = directory.path().join("image.tar");
    image.write_archive(&archive, Some("one"), &mut |_| {}).unwrap();
    let packed = directory.path().join("image.tar.gz");
    let mut encoder =
        flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
    encoder.write_all(&fs::read(&archive).unwrap()).unwrap();
    encoder.finish().unwrap();
    for path in [&layout, &archive, &packed] {
        assert!(Image::is_at(path).unwrap());
        for name in [None, Some("one")] {
            let read = open(path, name).unwrap();
            assert_eq!((read.digest(), read.config()), (image.digest(), image.config()));
            read_all(&read);
        }
        assert_eq!(
            open_error(path, Some("two")),
            "PATH has no image \"two\": there is one"
        );
    }
    let other = Image::builder()
        .base(open(&layout, None).unwrap())
        .label("x", "y")
        .build(&mut |_| {})
        .unwrap();
    other.write_layout(&layout, Some("two"), &mut |_| {}).unwrap();
    assert_eq!(open(&layout, Some("two")).unwrap().digest(), other.digest());
    assert_eq!(open(&layout, Some("one")).unwrap().digest(), image.digest());
    let several = "PATH has several images, and no name says which: there is one, two";
    assert_eq!(open_error(&layout, None), several);
    other.write_layout(&layout, Some("one"), &mut |_| {}).unwrap();
    assert_eq!(open(&layout, Some("one")).unwrap().digest(), other.digest());
}

#[test]
fn skopeo_reads_layouts_and_archives() {
    if !have("skopeo_reads_layouts_and_archives", &["skopeo"]) {
        return;
    }
    let (image, directory) = (image(), tempfile::tempdir().unwrap());
    let (layout, archive) = (
        directory.path().join("layout"),
        directory.path().join("image.tar"),
    );
    image.write_layout(&layout, Some("one"), &mut |_| {}).unwrap();
    image.write_archive(&archive, Some("one"), &mut |_| {}).unwrap();
    for address in [
        format!("oci:{}:one", layout.display()),
        format!("oci-archive:{}:one", archive.display()),
    ] {
        let found: Value = serde_json::from_slice(&run("skopeo", &["inspect", &address])).unwrap();
        assert_eq!(found["Digest"], image.digest().to_string());
        let copy = directory.path().join("copy");
        run("skopeo", &["copy", &address, &format!("dir:{}", copy.display())]);
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn archives_of_docker_as_skopeo_writes_them_are_read() {
    if !have("archives_of_docker_as_skopeo_writes_them_are_read", &["skopeo"]) {
        return;
    }
    let (image, directory) = (image(), tempfile::tempdir().unwrap());
    let layout = directory.path().join("layout");
    image.write_layout(&layout, Some("one"), &mut |_| {}).unwrap();
    let archive = directory.path().join("docker.tar");
    let target = format!("docker-archive:{}:docker.io/team/app:1", archive.display());
    run(
        "skopeo",
        &["copy", &format!("oci:{}:one", layout.display()), &target],
    );
    assert!(Image::is_at(&archive).unwrap());
    for name in [None, Some("team/app:1"), Some("docker.io/team/app:1")] {
        let read = open(&archive, name).unwrap();
        assert_eq!(read.config(), image.config());
        assert_eq!(read.layers().len(), 2);
        read_all(&read);
    }
    let error = open_error(&archive, Some("team/other:1"));
    assert!(
        error.starts_with("PATH has no image \"team/other:1\": there is "),
        "{error}"
    );
}

/// Members of an archive.
enum Member<'a> {
    File(&'a str, &'a [u8]),
    Symlink(&'a str, &'a str),
    HardLink(&'a str, &'a str),
}

/// An archive with names and targets as they are, whatever they are.
fn archive(members: &[Member<'_>]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.tar");
    let mut file = File::create(&path).unwrap();
    for member in members {
        let (kind, name, target, bytes) = match member {
            Member::File(name, bytes) => (tar::EntryType::Regular, name, "", *bytes),
            Member::Symlink(name, target) => (tar::EntryType::Symlink, name, *target, &b""[..]),
            Member::HardLink(name, target) => (tar::EntryType::Link, name, *target, &b""[..]),
        };
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(bytes).unwrap();
        file.write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()])
            .unwrap();
    }
    file.write_all(&[0; 1024]).unwrap();
    (directory, path)
}

fn config(diff_ids: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids
        .iter()
        .map(|bytes| Digest::of(bytes).to_string())
        .collect();
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn manifest(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{"Config": config, "RepoTags": ["app:1"], "Layers": layers}])
        .to_string()
        .into_bytes()
}

#[test]
fn an_old_archive_with_links_between_layers_is_read() {
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let (first, second, third) = (
        format!("{one}/layer.tar"),
        format!("{two}/layer.tar"),
        "third/layer.tar".to_owned(),
    );
    let config = config(&[b"layer", b"layer", b"layer"]);
    let manifest = manifest("c.json", &[&first, &second, &third]);
    let (_directory, path) = archive(&[
        Member::File(&first, b"layer"),
        Member::Symlink(&second, &format!("../{one}/layer.tar")),
        Member::HardLink(&third, &first),
        Member::File("c.json", &config),
        Member::File("manifest.json", &manifest),
    ]);
    assert!(Image::is_at(&path).unwrap());
    let image = open(&path, Some("app:1")).unwrap();
    assert_eq!(image.layers().len(), 3);
    let mut bytes = Vec::new();
    image.layer(1).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"layer");
    read_all(&image);
}

#[test]
fn links_and_names_do_not_lead_to_the_host() {
    let config = config(&[b"layer"]);
    let check = |manifest: &[u8], member: Member<'_>, expected: &str| {
        let (_directory, path) = archive(&[
            Member::File("manifest.json", manifest),
            Member::File("c.json", &config),
            member,
        ]);
        let found =
            open(&path, None).map_err(|error| chain(&error).replace(&path.display().to_string(), "PATH"));
        assert_eq!(found.map(|image| image.digest()).unwrap_err(), expected);
    };
    let good = manifest("c.json", &["l.tar"]);
    let refused = |text: &str| format!("the archive PATH is not usable: {text}");
    let absolute = refused("\"l.tar\" is a link to \"/etc/passwd\", which leaves it");
    check(&good, Member::Symlink("l.tar", "/etc/passwd"), &absolute);
    let relative = refused("\"l.tar\" is a link to \"../../etc/passwd\", which leaves it");
    check(&good, Member::Symlink("l.tar", "../../etc/passwd"), &relative);
    check(
        &good,
        Member::File("../l.tar", b"layer"),
        &refused("\"../l.tar\" leaves it"),
    );
    check(&good, Member::Symlink("l.tar", "l.tar"), "PATH has no l.tar");
    check(
        &good,
        Member::HardLink("l.tar", "/etc/passwd"),
        "PATH has no l.tar",
    );
    let outside = manifest("/etc/passwd", &["l.tar"]);
    check(
        &outside,
        Member::File("l.tar", b"layer"),
        "PATH has no /etc/passwd",
    );
    let outside = manifest("c.json", &["../../../etc/passwd"]);
    check(
        &outside,
        Member::File("l.tar", b"layer"),
        "PATH has no ../../../etc/passwd",
    );
    let fewer = manifest("c.json", &[]);
    let count = "manifest.json of PATH cannot be used: the manifest has 0 layers and the configuration 1";
    check(&fewer, Member::File("l.tar", b"layer"), count);
}

#[test]
fn wrong_bytes_in_an_archive_are_noticed() {
    let config = config(&[b"layer"]);
    let manifest = manifest("c.json", &["l.tar"]);
    let (_directory, path) = archive(&[
        Member::File("manifest.json", &manifest),
        Member::File("c.json", &config),
        Member::File("l.tar", b"other"),
    ]);
    let error = open(&path, None)
        .unwrap()
        .layer(0)
        .unwrap()
        .finish()
        .unwrap_err()
        .to_string();
    let (expected, received) = (Digest::of(b"layer"), Digest::of(b"other"));
    assert_eq!(error, format!("what should be {expected} is {received}, 5 bytes"));
}

#[test]
fn links_in_a_layout_do_not_lead_to_the_host() {
    let (image, directory) = (image(), tempfile::tempdir().unwrap());
    let layout = directory.path().join("layout");
    image.write_layout(&layout, None, &mut |_| {}).unwrap();
    let blob = layout.join("blobs/sha256").join(image.layers()[0].digest.hex());
    let outside = directory.path().join("outside");
    fs::rename(&blob, &outside).unwrap();
    symlink(&outside, &blob).unwrap();
    let error = open(&layout, None)
        .unwrap()
        .layer(0)
        .unwrap()
        .finish()
        .unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = open(&layout, None)
        .unwrap()
        .layer(0)
        .unwrap()
        .finish()
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("{} has no {}", layout.display(), image.layers()[0].digest)
    );
    fs::rename(&outside, layout.join("inside")).unwrap();
    symlink("../../inside", &blob).unwrap();
    read_all(&open(&layout, None).unwrap());
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    assert!(!Image::is_at(directory.path()).unwrap());
    assert_eq!(open_error(directory.path(), None), "PATH has no oci-layout");
    let (_directory, rootfs) = archive(&[Member::File("etc/hostname", b"x")]);
    assert!(!Image::is_at(&rootfs).unwrap());
    let none = "PATH is no OCI image layout and no archive of one or of `docker save`";
    assert_eq!(open_error(&rootfs, None), none);
    let text = directory.path().join("text");
    fs::write(&text, "hello").unwrap();
    assert!(!Image::is_at(&text).unwrap());
    assert_eq!(open_error(&text, None), none);
    fs::write(
        directory.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .unwrap();
    assert_eq!(
        open_error(directory.path(), None),
        "PATH is an image layout of version \"2.0.0\", not 1.0.0"
    );
    let missing = directory.path().join("missing");
    assert!(open_error(&missing, None).starts_with("cannot read PATH: No such file"));
}

#[test]
fn the_image_of_the_platform_is_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut platform = Platform::host();
        platform.architecture = architecture.into();
        // Two layouts without names, whose indexes become one.
        let image = Image::builder()
            .platform(platform.clone())
            .build(&mut |_| {})
            .unwrap();
        made.push((platform, image.digest(), image));
    }
    for (_, _, image) in &made {
        image.write_layout(directory.path(), None, &mut |_| {}).unwrap();
    }
    for (platform, digest, _) in &made {
        let found = Image::open(directory.path(), None, platform, directory.path()).unwrap();
        assert_eq!((found.digest(), &found.platform()), (digest.clone(), platform));
    }
    let mut platform = Platform::host();
    platform.architecture = "s390x".into();
    let error = chain(&Image::open(directory.path(), None, &platform, directory.path()).unwrap_err());
    assert!(
        error.ends_with("there is no image for linux/s390x, only for linux/amd64, linux/arm64"),
        "{error}"
    );
}
