//! From a place into the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use kata_image::{Image, ImageSource, Platform, Pull, PullPolicy, StoreError};

use crate::bench::{Bench, chain, fetch};

const BASE: &[(&str, &str)] = &[("bin/sh", "shell"), ("etc/motd", "hello")];

#[test]
fn layers_are_stored_once_and_shared_between_images() {
    let bench = Bench::new();
    let first = bench.layout("first", &[BASE, &[("srv/a", "a")]]);
    let second = bench.layout("second", &[BASE, &[("srv/b", "b")]]);
    let one = bench.fetch(&first).unwrap();
    assert_eq!((one.layers.len(), one.cached), (2, false));
    assert_eq!(bench.files().len(), 2);
    let two = bench.fetch(&second).unwrap();
    assert_eq!(one.layers[0].digest, two.layers[0].digest);
    assert!(two.layers[0].cached && !two.layers[1].cached);
    assert_eq!(bench.files().len(), 3);
    let again = bench.fetch(&first).unwrap();
    assert!(again.cached);
    assert_eq!(again.digest, one.digest);
    assert_eq!(bench.leftovers(), 0);
}

#[test]
fn what_the_author_says_comes_with_the_image() {
    let bench = Bench::new();
    let tree = bench.tree("tree", BASE);
    let builder = Image::builder()
        .directory(tree)
        .entrypoint(["/bin/sh"])
        .cmd(["-c", "true"])
        .env("A", "b")
        .user("www-data")
        .working_dir("/srv")
        .stop_signal("SIGINT")
        .label("k", "v");
    let layout = bench.write("layout", builder);
    for image in [bench.fetch(&layout).unwrap(), bench.fetch(&layout).unwrap()] {
        let config = image.config;
        assert_eq!(
            (config.entrypoint, config.cmd),
            (vec!["/bin/sh".into()], vec!["-c".into(), "true".into()])
        );
        assert!(config.env.contains(&("A".into(), "b".into())));
        assert_eq!(
            (config.user.as_str(), config.working_dir.as_str()),
            ("www-data", "/srv")
        );
        assert_eq!(
            (config.stop_signal.as_str(), config.labels["k"].as_str()),
            ("SIGINT", "v")
        );
    }
}

#[test]
fn an_archive_is_taken_as_its_layout_is() {
    let bench = Bench::new();
    let tree = bench.tree("tree", BASE);
    let image = Image::builder().directory(tree).build(&mut |_| ()).unwrap();
    let archive = bench.path("image.tar");
    image
        .write_archive(&archive, Some("latest"), &mut |_| ())
        .unwrap();
    let ready = bench.fetch(&archive).unwrap();
    assert_eq!(ready.digest, image.digest().to_string());
    assert!(bench.fetch(&archive).unwrap().cached);
}

#[test]
fn too_many_layers_become_one() {
    let bench = Bench::new();
    let names: Vec<String> = (0..13).map(|index| format!("f{index}")).collect();
    let files: Vec<[(&str, &str); 1]> = names.iter().map(|name| [(name.as_str(), "text")]).collect();
    let layers: Vec<&[(&str, &str)]> = files.iter().map(|files| &files[..]).collect();
    let layout = bench.layout("many", &layers);
    let image = bench.fetch(&layout).unwrap();
    assert_eq!(image.layers.len(), 1);
    let again = bench.fetch(&layout).unwrap();
    assert!(again.cached);
    assert_eq!(again.layers[0].digest, image.layers[0].digest);
    let twelve = bench.layout("twelve", &layers[..12]);
    assert_eq!(bench.fetch(&twelve).unwrap().layers.len(), 12);
}

#[test]
fn a_layer_that_occurs_twice_is_attached_once() {
    let bench = Bench::new();
    let layout = bench.layout("twice", &[BASE, &[("srv/a", "a")], BASE]);
    let image = bench.fetch(&layout).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_ne!(image.layers[0].digest, image.layers[1].digest);
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    let bench = Bench::new();
    let layout = bench.write("empty", Image::builder().cmd(["nothing"]));
    let image = bench.fetch(&layout).unwrap();
    assert_eq!(
        (image.layers.len(), image.config.cmd),
        (1, vec!["nothing".into()])
    );
    assert!(bench.fetch(&layout).unwrap().cached);
}

#[test]
fn a_changed_layout_is_fetched_again() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE]);
    let before = bench.fetch(&layout).unwrap();
    bench.layout("layout", &[BASE, &[("new", "file")]]);
    let after = bench.fetch(&layout).unwrap();
    assert_ne!(before.digest, after.digest);
    assert_eq!((after.layers.len(), after.cached), (2, false));
}

/// Conformance: semantics 25
#[test]
fn many_at_once_convert_each_layer_once() {
    let bench = Bench::new();
    let layouts: Vec<PathBuf> = (0..4)
        .map(|index| bench.layout(&format!("i{index}"), &[BASE, &[("own", &format!("{index}"))]]))
        .collect();
    let start = Barrier::new(8);
    let fetch_one = |layout: &Path| {
        let store = bench.store();
        start.wait();
        let image = fetch(&store, layout).unwrap();
        image.layers.iter().filter(|layer| !layer.cached).count()
    };
    let converted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = layouts
            .iter()
            .chain(&layouts)
            .map(|layout| scope.spawn(|| fetch_one(layout)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(converted, 5, "the base once, and one of its own for each");
    assert_eq!(bench.files().len(), 5);
    assert_eq!(bench.leftovers(), 0);
}

#[test]
fn a_damaged_record_or_layer_is_made_again() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE]);
    let image = bench.fetch(&layout).unwrap();
    let file = image.layers[0].path.clone();
    drop(image);
    fs::write(&file, "garbage").unwrap();
    let image = bench.fetch(&layout).unwrap();
    assert!(!image.cached && fs::metadata(&file).unwrap().len() > 4096);
    for directory in ["names", "layers"] {
        for entry in fs::read_dir(bench.path("images").join(directory)).unwrap() {
            fs::write(entry.unwrap().path(), "{").unwrap();
        }
        assert!(!bench.fetch(&layout).unwrap().cached);
    }
    fs::remove_file(&file).unwrap();
    assert!(!bench.fetch(&layout).unwrap().cached);
    assert!(file.exists());
}

/// The largest blob of a layout: its layer.
fn layer_of(layout: &Path) -> PathBuf {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let blobs = blobs.map(|entry| entry.unwrap().path());
    blobs
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn check_refused(bench: &Bench, layout: &Path, expected: &str) {
    let error = chain(&bench.fetch(layout).unwrap_err());
    assert!(error.contains(expected), "{error}");
    assert_eq!(bench.leftovers(), 0);
    assert!(bench.files().is_empty());
    assert_eq!(bench.store().list().unwrap(), []);
}

/// Conformance: semantics 25
#[test]
fn broken_blobs_are_not_kept_and_say_what_is_wrong() {
    let long: String = (0..4000).map(|number| format!("{number} ")).collect();
    let bench = Bench::new();
    let layout = bench.layout("cut", &[&[("f", &long)]]);
    let layer = layer_of(&layout);
    let whole = fs::read(&layer).unwrap();
    fs::write(&layer, &whole[..whole.len() / 2]).unwrap();
    check_refused(
        &bench,
        &layout,
        &format!("has {} bytes, and {} came", whole.len(), whole.len() / 2),
    );
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&layer, &changed).unwrap();
    check_refused(&bench, &layout, "what should be sha256:");
    fs::remove_file(&layer).unwrap();
    check_refused(&bench, &layout, layer.file_name().unwrap().to_str().unwrap());
    fs::write(&layer, &whole).unwrap();
    assert!(bench.fetch(&layout).is_ok());
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    let bench = Bench::new();
    let tree = bench.tree("tree", BASE);
    let platform = Platform {
        architecture: "s390x".into(),
        ..Platform::host()
    };
    let layout = bench.write(
        "layout",
        Image::builder().directory(tree).platform(platform.clone()),
    );
    let host = Platform::host();
    check_refused(
        &bench,
        &layout,
        &format!("there is no image for {host}, only for linux/s390x"),
    );
    let source = ImageSource::detect(&layout).unwrap();
    let pull = Pull::default().platform(platform);
    assert!(bench.store().image(&source, &pull, &mut |_| ()).is_ok());
}

#[test]
fn what_is_not_here_and_may_not_be_fetched_is_an_error() {
    let bench = Bench::new();
    let source = ImageSource::detect("127.0.0.1:1/never/fetched:1").unwrap();
    let pull = Pull::default().policy(PullPolicy::Never);
    let error = bench.store().image(&source, &pull, &mut |_| ()).unwrap_err();
    assert!(matches!(error, StoreError::NotStored { .. }), "{error}");
}

#[test]
fn progress_ends_at_the_size_of_all_layers() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE, &[("a", "b")]]);
    let source = ImageSource::detect(&layout).unwrap();
    let mut last = None;
    bench
        .store()
        .image(&source, &Pull::default(), &mut |progress| last = Some(progress))
        .unwrap();
    let last = last.unwrap();
    assert_eq!(Some(last.done_bytes), last.total_bytes);
    assert_eq!(last.entries, 2, "layers");
}
