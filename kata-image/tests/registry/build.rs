//! Images that are made here: the same from the same input, and what tar makes of their layers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use kata_image::{Digest, Image, LayerCompression, Platform};
use serde_json::Value;

use crate::programs::{chain, have, image, listing, read_all, run, tree};

fn unpacked(image: &Image, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let layer = image.layer(index).unwrap();
    let kind = image.layers()[index].media_type.clone();
    if kind.ends_with("gzip") {
        flate2::read::GzDecoder::new(layer)
            .read_to_end(&mut bytes)
            .unwrap();
    } else if kind.ends_with("zstd") {
        zstd::Decoder::new(layer)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
    } else {
        { layer }.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

fn build_error(builder: kata_image::ImageBuilder) -> String {
    chain(&builder.build(&mut |_| {}).unwrap_err())
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let source = tree(&[("b/file", b"contents"), ("a", b"x"), ("b-c", b"y")]);
    fs::hard_link(source.path().join("a"), source.path().join("z")).unwrap();
    symlink("a", source.path().join("link")).unwrap();
    let build = |compression| {
        let builder = Image::builder().directory(source.path()).compression(compression);
        builder.env("A", "b").label("c", "d").build(&mut |_| {}).unwrap()
    };
    for compression in [
        LayerCompression::None,
        LayerCompression::Gzip,
        LayerCompression::Zstd,
    ] {
        let (one, other) = (build(compression), build(compression));
        assert_eq!(one.digest(), other.digest());
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        one.write_layout(directories[0].path(), Some("x"), &mut |_| {})
            .unwrap();
        other
            .write_layout(directories[1].path(), Some("x"), &mut |_| {})
            .unwrap();
        assert_eq!(listing(directories[0].path()), listing(directories[1].path()));
        let archives = directories.map(|directory| {
            let path = directory.path().join("image.tar");
            one.write_archive(&path, None, &mut |_| {}).unwrap();
            fs::read(path).unwrap()
        });
        assert_eq!(archives[0], archives[1]);
        assert_eq!(unpacked(&one, 0), unpacked(&build(LayerCompression::None), 0));
    }
    let config = image().write_and_read_config();
    assert!(
        config.get("created").is_none() && config.get("history").is_none(),
        "{config}"
    );
}

/// The configuration as a document.
trait Configured {
    fn write_and_read_config(&self) -> Value;
}

impl Configured for Image {
    fn write_and_read_config(&self) -> Value {
        let directory = tempfile::tempdir().unwrap();
        self.write_layout(directory.path(), None, &mut |_| {}).unwrap();
        let blob = |hex: &str| -> Value {
            serde_json::from_slice(&fs::read(directory.path().join("blobs/sha256").join(hex)).unwrap())
                .unwrap()
        };
        let manifest = blob(self.digest().hex());
        blob(
            manifest["config"]["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap(),
        )
    }
}

#[test]
fn a_configuration_says_what_was_set() {
    let image = image();
    let config = image.config();
    assert_eq!(config.entrypoint, ["/bin/server", "--port", "80"]);
    assert_eq!(config.cmd, ["start"]);
    assert_eq!(config.env[1], ("EMPTY".to_owned(), String::new()));
    assert_eq!(
        (config.user.as_str(), config.working_dir.as_str()),
        ("www-data", "/srv")
    );
    assert!(config.volumes.contains("/data") && config.exposed_ports.contains("80/tcp"));
    assert_eq!(
        (config.stop_signal.as_str(), config.labels["maker"].as_str()),
        ("SIGQUIT", "tests")
    );
    assert_eq!(image.platform(), Platform::host());
}

#[test]
fn a_base_is_kept_and_changed_where_it_is_said() {
    let base = image();
    let (layers, digest) = (base.layers(), base.digest());
    let more = tree(&[("more", b"more")]);
    let derived = Image::builder()
        .base(base)
        .directory(more.path())
        .entrypoint(["/bin/other"])
        .env("PATH", "/usr/bin")
        .env("MORE", "1")
        .label("second", "x")
        .created("2026-01-31T12:00:00Z")
        .build(&mut |_| {})
        .unwrap();
    assert_ne!(derived.digest(), digest);
    assert_eq!(derived.layers()[..2], layers);
    assert_eq!(derived.layers().len(), 3);
    let config = derived.config();
    assert_eq!(config.entrypoint, ["/bin/other"]);
    assert!(config.cmd.is_empty(), "arguments of another command mean nothing");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        config.env,
        [pair("EMPTY", ""), pair("PATH", "/usr/bin"), pair("MORE", "1")]
    );
    assert_eq!(
        (config.labels["maker"].as_str(), config.labels["second"].as_str()),
        ("tests", "x")
    );
    assert_eq!(config.user, "www-data");
    let document = derived.write_and_read_config();
    assert_eq!(document["created"], "2026-01-31T12:00:00Z");
    let diff_ids = document["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids[2], Digest::of(&unpacked(&derived, 2)).to_string());
    read_all(&derived);
}

/// Everything that a layer should bring back.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    mtime: i64,
    links: u64,
    contents: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn facts(root: &Path) -> BTreeMap<String, Facts> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let status = fs::symlink_metadata(&path).unwrap();
            if status.is_dir() {
                pending.push(path.clone());
            }
            let contents = if status.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if status.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let xattrs = xattr::list(&path)
                .unwrap()
                .filter(|name| name != "security.selinux");
            let xattrs = xattrs
                .map(|name| {
                    (
                        name.to_string_lossy().into_owned(),
                        xattr::get(&path, &name).unwrap().unwrap(),
                    )
                })
                .collect();
            let facts = Facts {
                mode: status.mode(),
                owner: (status.uid(), status.gid()),
                device: status.rdev(),
                mtime: status.mtime(),
                links: if status.is_dir() { 0 } else { status.nlink() },
                contents,
                xattrs,
            };
            found.insert(
                path.strip_prefix(root).unwrap().to_string_lossy().into_owned(),
                facts,
            );
        }
    }
    found
}

#[test]
fn tar_makes_of_a_layer_what_the_directory_was() {
    if !have("tar_makes_of_a_layer_what_the_directory_was", &["tar", "mknod"]) {
        return;
    }
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let source = tree(&[
        ("file", b"contents"),
        ("empty", b""),
        (&long, b"long"),
        ("dir/inner", &[7; 1025]),
    ]);
    let at = |name: &str| source.path().join(name);
    fs::hard_link(at("file"), at("other")).unwrap();
    symlink("x".repeat(300), at("long-link")).unwrap();
    symlink("file", at("link")).unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
    xattr::set(at("file"), "user.note", b"binary\n\0\xff").unwrap();
    run("mkfifo", &[at("fifo").to_str().unwrap()]);
    run("touch", &["-d", "1950-06-01", at("empty").to_str().unwrap()]);
    if rustix::process::geteuid().is_root() {
        run("mknod", &[at("device").to_str().unwrap(), "c", "250", "70000"]);
        run("chown", &["3000000:4000000", at("dir/inner").to_str().unwrap()]);
        run("chown", &["-h", "12:34", at("link").to_str().unwrap()]);
    }
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    (&sparse).write_all(b"x").unwrap();
    drop(sparse);
    let image = Image::builder()
        .directory(source.path())
        .compression(LayerCompression::None)
        .build(&mut |_| {})
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    let archive = target.path().join("layer.tar");
    fs::write(&archive, unpacked(&image, 0)).unwrap();
    let root = target.path().join("root");
    fs::create_dir(&root).unwrap();
    let (file, directory) = (archive.to_str().unwrap(), root.to_str().unwrap());
    let keep = [
        "--xattrs",
        "--xattrs-include=*",
        "--same-owner",
        "--numeric-owner",
        "-p",
    ];
    run("tar", &[&["-xf", file, "-C", directory][..], &keep].concat());
    let (found, expected) = (facts(&root), facts(source.path()));
    for (name, facts) in &expected {
        assert_eq!(found.get(name), Some(facts), "{name}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn owners_can_be_given_to_everything() {
    let source = tree(&[("a/b", b"x")]);
    let build =
        |builder: kata_image::ImageBuilder| builder.directory(source.path()).build(&mut |_| {}).unwrap();
    let image = build(Image::builder().owner(7, 5_000_000));
    let bytes = unpacked(&image, 0);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut count = 0;
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            (entry.header().uid().unwrap(), entry.header().gid().unwrap()),
            (7, 5_000_000)
        );
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn archives_become_layers_as_they_are_or_packed() {
    let plain = unpacked(&image(), 1);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("plain.tar"), &plain).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    fs::write(at("packed.tar.gz"), gzip.finish().unwrap()).unwrap();
    fs::write(
        at("packed.tar.zst"),
        zstd::encode_all(plain.as_slice(), 9).unwrap(),
    )
    .unwrap();
    let builder = Image::builder()
        .archive(at("plain.tar"))
        .archive(at("packed.tar.gz"));
    let image = builder.archive(at("packed.tar.zst")).build(&mut |_| {}).unwrap();
    let config = image.write_and_read_config();
    for index in 0..3 {
        assert_eq!(
            config["rootfs"]["diff_ids"][index],
            Digest::of(&plain).to_string()
        );
        assert_eq!(unpacked(&image, index), plain);
    }
    let layers = image.layers();
    assert_eq!(
        layers[1].digest,
        Digest::of(&fs::read(at("packed.tar.gz")).unwrap())
    );
    assert_eq!(
        layers[2].digest,
        Digest::of(&fs::read(at("packed.tar.zst")).unwrap())
    );
    let kinds: Vec<_> = layers
        .iter()
        .map(|layer| layer.media_type.rsplit('.').next().unwrap())
        .collect();
    assert_eq!(kinds, ["tar+gzip", "tar+gzip", "tar+zstd"]);
}

#[test]
fn what_cannot_be_a_layer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("text"), "hello").unwrap();
    let error = build_error(Image::builder().archive(at("text")));
    let expected = "cannot be a layer: it is no tar archive, plain or packed with gzip or zstd";
    assert_eq!(error, format!("{} {expected}", at("text").display()));
    let whole = unpacked(&image(), 1);
    fs::write(at("cut.tar"), &whole[..1000]).unwrap();
    let error = build_error(Image::builder().archive(at("cut.tar")));
    assert_eq!(
        error,
        format!(
            "{} cannot be a layer: the archive ends in the middle",
            at("cut.tar").display()
        )
    );
    let error = build_error(Image::builder().directory(at("missing")));
    assert!(
        error.starts_with(&format!("cannot read {}: No such file", at("missing").display())),
        "{error}"
    );
    let source = tree(&[("a", b"x")]);
    let error = build_error(
        Image::builder()
            .directory(source.path())
            .temporary_directory(at("missing")),
    );
    assert!(
        error.starts_with(&format!("cannot write {}: ", at("missing").display())),
        "{error}"
    );
}
