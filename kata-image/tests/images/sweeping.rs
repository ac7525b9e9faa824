//! Making room, and what may not go.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kata_image::{Source, StoreError};

use crate::bench::Bench;

/// Makes the image of a layout one that was last used so many minutes ago.
fn age(bench: &Bench, name: &Path, minutes: u64) {
    let then = SystemTime::now() - Duration::from_secs(60 * minutes);
    for entry in std::fs::read_dir(bench.path("images/names")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains(&format!("\"{}\"", name.display())) {
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(then)
                .unwrap();
        }
    }
}

fn names(bench: &Bench) -> Vec<String> {
    let images = bench.store().list().unwrap();
    images
        .iter()
        .map(|image| image.name.rsplit('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_list_says_what_is_there_the_last_used_first() {
    let bench = Bench::new();
    let old = bench.layout("old", &[&[("a", "1")], &[("b", "2")]]);
    let new = bench.layout("new", &[&[("a", "1")]]);
    bench.fetch(&old).unwrap();
    let open = bench.fetch(&new).unwrap();
    age(&bench, &old, 10);
    let images = bench.store().list().unwrap();
    assert_eq!(names(&bench), ["new", "old"]);
    assert_eq!((images[0].layers, images[1].layers), (1, 2));
    assert_eq!(images[0].digest, open.digest);
    assert!(images[1].size_bytes > images[0].size_bytes && images[0].size_bytes > 0);
    assert!(
        images.iter().all(|image| image.in_use),
        "the shared layer is open"
    );
    drop(open);
    assert!(bench.store().list().unwrap().iter().all(|image| !image.in_use));
}

#[test]
fn the_least_recently_used_go_first_and_shared_layers_stay() {
    let bench = Bench::new();
    let big = "x".repeat(100_000);
    let base: &[(&str, &str)] = &[("base", &big)];
    let layouts = ["a", "b", "c"].map(|name| bench.layout(name, &[base, &[(name, &big)]]));
    for (layout, minutes) in layouts.iter().zip([30, 20, 10]) {
        bench.fetch(layout).unwrap();
        age(&bench, layout, minutes);
    }
    assert_eq!(bench.files().len(), 4);
    let all = bench.store().prune(u64::MAX).unwrap();
    assert_eq!((all.images.len(), all.freed_bytes), (0, 0));
    let pruned = bench.store().prune(all.left_bytes - 1).unwrap();
    assert_eq!(names(&bench), ["c", "b"]);
    assert_eq!(pruned.images.len(), 1);
    assert!(pruned.freed_bytes >= 100_000);
    assert_eq!(pruned.left_bytes + pruned.freed_bytes, all.left_bytes);
    assert_eq!(bench.files().len(), 3);
    assert!(bench.fetch(&layouts[1]).unwrap().cached);
    let rest = bench.store().prune(0).unwrap();
    assert_eq!(
        (rest.left_bytes, bench.files().len(), names(&bench).len()),
        (0, 0, 0)
    );
    assert!(!bench.fetch(&layouts[0]).unwrap().cached);
}

#[test]
fn nothing_that_is_in_use_goes() {
    let bench = Bench::new();
    let used = bench.layout("used", &[&[("a", "1")]]);
    let idle = bench.layout("idle", &[&[("b", "2")]]);
    bench.fetch(&idle).unwrap();
    let image = bench.fetch(&used).unwrap();
    // A machine has a copy of the descriptor, and the program that asked for the image may be gone.
    let machines = image.layers[0].file.try_clone().unwrap();
    drop(image);
    let pruned = bench.store().prune(0).unwrap();
    assert_eq!((names(&bench), bench.files().len()), (vec!["used".into()], 1));
    assert!(pruned.left_bytes > 0);
    let removed = bench.store().remove(used.to_str().unwrap()).unwrap();
    assert_eq!((removed.freed_bytes, bench.files().len()), (0, 1));
    drop(machines);
    bench.store().prune(0).unwrap();
    assert_eq!(bench.files().len(), 0);
}

#[test]
fn a_limit_is_kept_when_an_image_is_added() {
    let bench = Bench::new();
    let text = "x".repeat(200_000);
    let store = bench.store().limit(300_000);
    let directories = ["a", "b"].map(|name| bench.tree(name, &[(name, &text)]));
    for directory in directories {
        store.rootfs(&Source::Directory(directory), &mut |_| ()).unwrap();
    }
    assert_eq!(names(&bench), ["b"]);
    assert_eq!(bench.files().len(), 1);
}

#[test]
fn removing_by_name_says_when_there_is_none() {
    let bench = Bench::new();
    let layout = bench.layout("layout", &[&[("a", "1")]]);
    bench.fetch(&layout).unwrap();
    let pruned = bench.store().remove(layout.to_str().unwrap()).unwrap();
    assert_eq!(pruned.images, [layout.to_str().unwrap()]);
    assert!(bench.files().is_empty());
    let error = bench.store().remove(layout.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::NotStored { .. }), "{error}");
}

#[test]
fn a_source_outside_of_the_store_is_never_removed() {
    let bench = Bench::new();
    let tree = bench.tree("tree", &[("a", "1")]);
    let made = bench
        .store()
        .rootfs(&Source::Directory(tree), &mut |_| ())
        .unwrap();
    let elsewhere = bench.path("ready.erofs");
    std::fs::copy(&made.path, &elsewhere).unwrap();
    drop(made);
    bench
        .store()
        .rootfs(&Source::Erofs(elsewhere.clone()), &mut |_| ())
        .unwrap();
    bench.store().prune(0).unwrap();
    assert!(elsewhere.exists());
    assert!(bench.files().is_empty());
}
