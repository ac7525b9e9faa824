//! Hash trees of images in the store: for every layer that is asked for with one, made once, gone with its image.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use kata_image::{ImageSource, Pull, ReadyImage, Rootfs, Source, StoreError, StoredHashTree};

use crate::bench::{Bench, chain};

const BASE: &[(&str, &str)] = &[("bin/sh", "shell"), ("etc/motd", "hello")];

fn fetch(bench: &Bench, path: &Path) -> Result<ReadyImage, StoreError> {
    let source = ImageSource::detect(path).unwrap();
    let pull = Pull::default().hash_trees(true);
    bench.store().image(&source, &pull, &mut |_| ())
}

fn tree(layer: &Rootfs) -> &StoredHashTree {
    layer.hash_tree.as_ref().unwrap()
}

/// Whether veritysetup, which checks without the kernel, accepts every block; where it is not installed that is said,
/// and fails where `CI` is `true`.
fn is_proved(image: &Path, hash_tree: &StoredHashTree) -> Option<bool> {
    let root: String = hash_tree
        .tree
        .root_hash
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut command = Command::new("veritysetup");
    command.arg("verify").arg(image).arg(&hash_tree.path).arg(root);
    match command.output() {
        Ok(output) => Some(output.status.success()),
        Err(error) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "veritysetup: {error}");
            // Not by a macro, whose output the test harness hides.
            let said = writeln!(io::stderr(), "SKIPPED: veritysetup: {error}");
            said.unwrap();
            None
        }
    }
}

#[test]
fn every_layer_has_a_tree_where_that_is_asked_for() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE, &[("srv/a", "a")]]);
    let plain = bench.fetch(&layout).unwrap();
    assert!(plain.layers.iter().all(|layer| layer.hash_tree.is_none()));
    let image = fetch(&bench, &layout).unwrap();
    assert_eq!((image.layers.len(), image.cached), (2, true));
    for layer in &image.layers {
        assert_eq!(tree(layer).tree.data_blocks * 4096, layer.size_bytes);
        assert_ne!(is_proved(&layer.path, tree(layer)), Some(false));
        let changed = bench.path("changed.erofs");
        fs::copy(&layer.path, &changed).unwrap();
        let file = File::options().write(true).open(&changed).unwrap();
        file.write_all_at(b"!", layer.size_bytes - 1).unwrap();
        assert_ne!(is_proved(&changed, tree(layer)), Some(true));
    }
    let [one, other] = [0, 1].map(|layer| tree(&image.layers[layer]).tree.root_hash);
    assert_ne!(one, other);
    assert_eq!(bench.leftovers(), 0);
}

#[test]
fn a_tree_is_made_once_and_again_when_it_was_touched() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE]);
    let facts = || {
        let image = fetch(&bench, &layout).unwrap();
        let tree = tree(&image.layers[0]);
        let inode = tree.file.metadata().unwrap().ino();
        (inode, tree.tree.clone(), fs::read(&tree.path).unwrap())
    };
    let first = facts();
    assert_eq!(facts(), first);
    let path = { tree(&fetch(&bench, &layout).unwrap().layers[0]).path.clone() };
    fs::write(&path, "garbage").unwrap();
    let (_, root, bytes) = facts();
    assert_eq!((&root, &bytes), (&first.1, &first.2));
    fs::remove_file(&path).unwrap();
    assert_eq!(facts().2, bytes);
    for record in fs::read_dir(bench.path("images/trees")).unwrap() {
        fs::write(record.unwrap().path(), "{").unwrap();
    }
    assert_eq!(facts().2, bytes);
}

#[test]
fn a_tree_counts_and_goes_with_its_image() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[BASE]);
    bench.fetch(&layout).unwrap();
    let without = bench.store().list().unwrap()[0].size_bytes;
    let image = fetch(&bench, &layout).unwrap();
    let path = tree(&image.layers[0]).path.clone();
    assert!(bench.store().list().unwrap()[0].size_bytes > without);
    // A machine has a copy of the tree's descriptor alone.
    let machines = tree(&image.layers[0]).file.try_clone().unwrap();
    drop(image);
    assert!(bench.store().list().unwrap()[0].in_use);
    bench.store().prune(0).unwrap();
    assert!(path.exists() && bench.files().len() == 1);
    drop(machines);
    let pruned = bench.store().prune(0).unwrap();
    assert!(pruned.freed_bytes > without && pruned.left_bytes == 0);
    assert!(!path.exists() && bench.files().is_empty());
    assert_eq!(fs::read_dir(bench.path("images/trees")).unwrap().count(), 0);
}

#[test]
fn layers_that_are_too_many_with_their_trees_become_one() {
    let bench = Bench::new();
    let names: Vec<String> = (0..7).map(|index| format!("f{index}")).collect();
    let files: Vec<[(&str, &str); 1]> = names.iter().map(|name| [(name.as_str(), "text")]).collect();
    let layers: Vec<&[(&str, &str)]> = files.iter().map(|files| &files[..]).collect();
    let six = bench.layout("six", &layers[..6]);
    assert_eq!(fetch(&bench, &six).unwrap().layers.len(), 6);
    let seven = bench.layout("seven", &layers);
    assert_eq!(bench.fetch(&seven).unwrap().layers.len(), 7);
    let image = fetch(&bench, &seven).unwrap();
    assert_eq!((image.layers.len(), image.cached), (1, true));
    assert_ne!(
        is_proved(&image.layers[0].path, tree(&image.layers[0])),
        Some(false)
    );
    let again = bench.fetch(&seven).unwrap();
    assert_eq!(again.layers[0].digest, image.layers[0].digest);
}

#[test]
fn an_image_outside_of_the_store_has_its_tree_inside() {
    let bench = Bench::new();
    let made = bench
        .store()
        .rootfs(&Source::Directory(bench.tree("tree", BASE)), &mut |_| ())
        .unwrap();
    let outside = bench.path("ready.erofs");
    fs::copy(&made.path, &outside).unwrap();
    drop(made);
    bench.store().prune(0).unwrap();
    let image = fetch(&bench, &outside).unwrap();
    assert_ne!(is_proved(&outside, tree(&image.layers[0])), Some(false));
    assert!(tree(&image.layers[0]).path.starts_with(bench.path("images")));
    let path = tree(&image.layers[0]).path.clone();
    drop(image);
    bench.store().prune(0).unwrap();
    assert!(outside.exists() && !path.exists());
    let odd = File::options().write(true).open(&outside).unwrap();
    odd.set_len(odd.metadata().unwrap().len() + 1).unwrap();
    let error = chain(&fetch(&bench, &outside).unwrap_err());
    let expected = format!("cannot make a hash tree of {}: an image of ", outside.display());
    assert!(error.starts_with(&expected), "{error}");
}
