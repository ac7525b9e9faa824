//! Layers as images, and images as the kernel stacks them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_image::erofs::{self, Limits};
use kata_image::layer::{self, Converted};

use crate::oracle::{Listing, chain, check_directory_links, list, run};

/// Images of layers, the lowest first, in a directory of their own.
pub(crate) struct Layers {
    directory: tempfile::TempDir,
    pub(crate) converted: Vec<Converted>,
}

pub(crate) fn convert(archive: &[u8], out: &File) -> Result<Converted, erofs::Error> {
    convert_within(archive, out, &Limits::default())
}

pub(crate) fn convert_within(archive: &[u8], out: &File, limits: &Limits) -> Result<Converted, erofs::Error> {
    layer::convert(archive, Path::new("LAYER"), out, limits, &mut |_| {})
}

pub(crate) fn create(path: &Path) -> File {
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    options
        .open(path)
        .unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

impl Layers {
    pub(crate) fn convert(archives: &[Vec<u8>]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut layers = Self {
            directory,
            converted: Vec::new(),
        };
        for (index, archive) in archives.iter().enumerate() {
            let out = create(&layers.path(index));
            let converted = convert(archive, &out);
            layers
                .converted
                .push(converted.unwrap_or_else(|error| panic!("{index}: {}", chain(&error))));
            run(Command::new("fsck.erofs").arg(layers.path(index)));
        }
        layers
    }

    pub(crate) fn path(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("{index}.erofs"))
    }

    fn with_layers<T>(&self, act: impl FnOnce(&[layer::Layer<'_>]) -> T) -> T {
        let files: Vec<_> = (0..self.converted.len())
            .map(|index| File::open(self.path(index)).expect("image"))
            .collect();
        let layers: Vec<_> = { files.iter().zip(&self.converted) }
            .map(|(image, converted)| layer::Layer {
                image,
                notes: &converted.notes,
                label: Path::new("LAYER"),
            })
            .collect();
        act(&layers)
    }

    pub(crate) fn can_stack(&self) -> bool {
        self.with_layers(|layers| layer::can_stack(layers, &Limits::default()))
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// All layers as one image.
    pub(crate) fn try_merge(&self) -> Result<Flat, erofs::Error> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let out = create(&directory.path().join("flat.erofs"));
        let summary =
            self.with_layers(|layers| layer::merge(layers, &out, &Limits::default(), &mut |_| {}))?;
        Ok(Flat { directory, summary })
    }

    pub(crate) fn merge(&self) -> Flat {
        let flat = self
            .try_merge()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        run(Command::new("fsck.erofs").arg(flat.path()));
        assert_eq!(
            fs::metadata(flat.path()).expect("image").len(),
            flat.summary.size_bytes
        );
        flat
    }

    /// Mounts every layer, and all of them as overlayfs shows them.
    pub(crate) fn mount(&self) -> Stack {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut stack = Stack {
            directory,
            mounted: Vec::new(),
        };
        for index in 0..self.converted.len() {
            let at = stack.directory.path().join(format!("{index}"));
            fs::create_dir(&at).expect("directory");
            let mut mount = Command::new("mount");
            mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(self.path(index));
            run(mount.arg(&at));
            stack.mounted.push(at);
        }
        stack.overlay();
        stack
    }
}

/// A merged image.
pub(crate) struct Flat {
    directory: tempfile::TempDir,
    pub(crate) summary: erofs::Summary,
}

impl Flat {
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("flat.erofs")
    }

    pub(crate) fn list(&self) -> Listing {
        let at = tempfile::tempdir().expect("temporary directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(self.path());
        run(mount.arg(at.path()));
        let listing = list(at.path());
        check_directory_links(at.path(), &listing);
        run(Command::new("umount").arg("-l").arg(at.path()));
        listing
    }
}

/// Mounted layers.
pub(crate) struct Stack {
    directory: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Stack {
    /// With an empty directory on top, as a sandbox has it.
    fn overlay(&mut self) {
        let path = |name: &str| self.directory.path().join(name);
        let (upper, work, merged) = (path("upper"), path("work"), path("merged"));
        for path in [&upper, &work, &merged] {
            fs::create_dir(path).expect("directory");
        }
        let lower: Vec<_> = self
            .mounted
            .iter()
            .rev()
            .map(|path| path.display().to_string())
            .collect();
        let (upper, work) = (upper.display(), work.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
        let mut mount = Command::new("mount");
        run(mount
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged));
        self.mounted.push(merged);
    }

    /// A layer by itself.
    pub(crate) fn layer(&self, index: usize) -> &Path {
        &self.mounted[index]
    }

    /// All layers.
    pub(crate) fn merged(&self) -> &Path {
        self.mounted.last().expect("an overlay")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            run(Command::new("umount").arg("-l").arg(path));
        }
    }
}
