//! A store, and layouts to fill it from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kata_image::{Image, ImageBuilder, ImageSource, Pull, ReadyImage, Store, StoreError};

pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path("images")).unwrap()
    }

    /// A directory with these files.
    pub(crate) fn tree(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let tree = self.path(name);
        for (file, text) in files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            // The same files are the same layer, also where the clock ticks between two of them.
            for place in path.ancestors().take_while(|place| place.starts_with(&tree)) {
                let place = fs::File::open(place).unwrap();
                place.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        }
        tree
    }

    /// A layout of an image with a layer for each list of files.
    pub(crate) fn layout(&self, name: &str, layers: &[&[(&str, &str)]]) -> PathBuf {
        let layer = |(index, files): (usize, &&[(&str, &str)])| self.tree(&format!("{name}-{index}"), files);
        let trees: Vec<PathBuf> = layers.iter().enumerate().map(layer).collect();
        self.write(
            name,
            trees
                .iter()
                .fold(Image::builder(), |builder, tree| builder.directory(tree)),
        )
    }

    pub(crate) fn write(&self, name: &str, builder: ImageBuilder) -> PathBuf {
        let path = self.path(name);
        let image = builder.build(&mut |_| ()).unwrap();
        image.write_layout(&path, Some("latest"), &mut |_| ()).unwrap();
        path
    }

    pub(crate) fn fetch(&self, layout: &Path) -> Result<ReadyImage, StoreError> {
        fetch(&self.store(), layout)
    }

    /// The images in the store.
    pub(crate) fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("images")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".erofs")).collect();
        names.sort();
        names
    }

    /// What a dead process or a failure would have left.
    pub(crate) fn leftovers(&self) -> usize {
        fs::read_dir(self.path("images/tmp")).unwrap().count()
    }
}

pub(crate) fn fetch(store: &Store, layout: &Path) -> Result<ReadyImage, StoreError> {
    let source = ImageSource::detect(layout).unwrap();
    assert!(matches!(source, ImageSource::Layout { .. }), "{source}");
    store.image(&source, &Pull::default(), &mut |_| ())
}

/// An error and what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
