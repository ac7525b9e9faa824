//! The image that is pulled: three layers of real software, packed with gzip as most images are, some 110 MB when
//! they are unpacked. How it is measured, it must not know.
//!
//! ```text
//!  root filesystem, without what slim images leave out ─► layer 1
//!  images of the tests: nginx, redis                  ─► layers 2 and 3
//! ```

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_image::{Image, Platform, Reference, Registries};

/// Left out, as in slim images: most of the documentation, translations, and perl but for its core.
const LEFT_OUT: [&str; 7] = [
    "./dev/*",
    "./usr/lib/*/perl/*",
    "./usr/share/doc/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/perl/*",
    "./var/cache/*",
];

/// Images of the tests, each of whose last layer is taken.
const PROGRAMS: [&str; 2] = ["nginx", "redis"];

/// What is in the registry.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) reference: String,
    /// Of its layers as they are stored.
    pub(crate) packed_bytes: u64,
    /// Of its layers when they are unpacked.
    pub(crate) unpacked_bytes: u64,
    pub(crate) layers: usize,
}

impl Subject {
    /// Makes the image in `work`, and pushes it to the registry at `host`.
    ///
    /// # Errors
    /// When the root filesystem or an image cannot be read, or the registry does not take the image.
    pub(crate) fn push(
        rootfs: &Path,
        images: &Path,
        work: &Path,
        host: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let mut archives = vec![slim(rootfs, work)?];
        for name in PROGRAMS {
            archives.push(unpack_last_layer(images, name, work)?);
        }
        let mut unpacked_bytes = 0;
        let mut builder = Image::builder().temporary_directory(work).cmd(["redis-server"]);
        for archive in &archives {
            unpacked_bytes += archive.metadata()?.len();
            builder = builder.archive(archive);
        }
        let image = builder.build(&mut |_| ())?;
        let reference: Reference = format!("{host}/bench/servers:1").parse()?;
        image.push(&Registries::new(), &reference, &mut |_| ())?;
        Ok(Self {
            reference: reference.to_string(),
            packed_bytes: image.layers().iter().map(|layer| layer.size_bytes).sum(),
            unpacked_bytes,
            layers: archives.len(),
        })
    }
}

/// The root filesystem without what slim images leave out, as an archive in `work`.
fn slim(rootfs: &Path, work: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (tree, archive) = (work.join("slim"), work.join("slim.tar"));
    std::fs::create_dir(&tree)?;
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(rootfs);
    unpack.arg("--directory").arg(&tree);
    run(unpack.args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}"))))?;
    let mut pack = Command::new("tar");
    pack.arg("--create").arg("--file").arg(&archive);
    pack.arg("--directory").arg(&tree);
    run(pack.args(["--sort=name", "."]))?;
    Ok(archive)
}

/// The image's last layer, which is packed with gzip, as a plain archive in `work`.
fn unpack_last_layer(images: &Path, name: &str, work: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let image = Image::open(images, Some(name), &Platform::host(), work)?;
    let last = image.layers().len().checked_sub(1);
    let mut layer = last
        .and_then(|last| image.layer(last))
        .ok_or("an image without layers")?;
    let packed = work.join(name).with_extension("tar.gz");
    io::copy(&mut layer, &mut File::create(&packed)?)?;
    layer.finish()?;
    run(Command::new("gunzip").arg(&packed))?;
    Ok(work.join(name).with_extension("tar"))
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {status}").into())
}
