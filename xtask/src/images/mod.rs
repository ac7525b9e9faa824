//! Images with real software for the tests: an OCI layout of the root filesystem, and of programs on top of it.
//!
//! ```text
//!  root filesystem ─────────────────────────────► base                a layer that the others share
//!   └ mmdebstrap installs a package ─► changes ─► python, nginx, …    a layer each
//! ```
//!
//! Packages are installed as a person would in a Dockerfile: with what they do to users, links and caches. It owns how
//! images are made; which, is [`programs`]'s. How they are tested it must not know.

mod install;
mod programs;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_image::{BuildError, Image, ImageBuilder, LayerCompression, LayoutError, Platform, Progress};
use sha2::{Digest as _, Sha256};

use crate::distribution::{Distribution, DistributionError};
use crate::making::{MakingError, file};
use crate::partial::Partial;
use crate::progress::Step;
use crate::units::mib;
use programs::{PROGRAMS, Program};

/// Where an image has the script that its command goes through.
const ENTRYPOINT: &str = "/usr/local/bin/docker-entrypoint.sh";

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// An image could not be made.
    #[error("cannot make the image {name}")]
    Build {
        /// Its name.
        name: &'static str,
        /// Why not.
        #[source]
        source: BuildError,
    },
    /// The base could not be read again.
    #[error("cannot build on the base image")]
    Base(#[from] LayoutError),
    /// Nobody knows where packages come from.
    #[error("cannot install packages for images")]
    Distribution(#[from] DistributionError),
    /// A program or a file of the cache failed.
    #[error(transparent)]
    Making(#[from] MakingError),
}

/// The layout in the cache, with a name for each image; made when it is not there.
///
/// # Errors
/// When it is not in the cache and cannot be made.
pub(crate) fn provide(rootfs: &Path) -> Result<PathBuf, ImagesError> {
    let layout = rootfs.with_extension(format!("{}.images", revision()));
    if !layout.is_dir() {
        make(rootfs, &layout)?;
    }
    Ok(layout)
}

/// Another one when other images are asked for: the first 8 hexadecimal digits of a hash of what is asked.
fn revision() -> String {
    let asked = format!("{PROGRAMS:?}{}", install::recipe());
    hex::encode(&Sha256::digest(asked)[..4])
}

fn make(rootfs: &Path, layout: &Path) -> Result<(), ImagesError> {
    let names: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
    let step = Step::start(format!(
        "images of {} (once, about two minutes)",
        names.join(", ")
    ));
    let directory = layout.parent().unwrap_or(Path::new("/"));
    let partial = Partial::new(directory, ".images").map_err(file("write into", directory))?;
    let scratch = tempfile::Builder::new()
        .prefix(".images-")
        .tempdir_in(directory)
        .map_err(file("write into", directory))?;
    let base = Image::builder()
        .archive(rootfs)
        .compression(LayerCompression::Zstd)
        .cmd(["/bin/sh"]);
    write(&step, "base", base, partial.path())?;
    let distribution = Distribution::detect()?;
    install::layers(&step, rootfs, &distribution, PROGRAMS, scratch.path())?;
    for program in PROGRAMS {
        let base = Image::open(partial.path(), Some("base"), &Platform::host(), scratch.path())?;
        let image = image(program, base, scratch.path());
        write(&step, program.name, image, partial.path())?;
    }
    let size = blob_bytes(partial.path()).map_err(file("read", partial.path()))?;
    partial.complete(layout).map_err(file("create", layout))?;
    step.done(mib(size));
    Ok(())
}

fn blob_bytes(layout: &Path) -> io::Result<u64> {
    let mut sizes = fs::read_dir(layout.join("blobs/sha256"))?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.try_fold(0, |sum, size: io::Result<u64>| Ok(sum + size?))
}

/// The image of a program whose layer is made.
fn image(program: &Program, base: Image, scratch: &Path) -> ImageBuilder {
    let mut image = Image::builder()
        .base(base)
        .archive(install::layer(program, scratch));
    if program.entrypoint.is_some() {
        image = image.entrypoint([ENTRYPOINT]);
    }
    image = image.cmd(program.cmd.iter().copied());
    for (name, value) in program.env {
        image = image.env(*name, *value);
    }
    if let Some(directory) = program.working_dir {
        image = image.working_dir(directory);
    }
    if let Some(port) = program.port {
        image = image.exposed_port(port);
    }
    if let Some(volume) = program.volume {
        image = image.volume(volume);
    }
    if let Some(signal) = program.stop_signal {
        image = image.stop_signal(signal);
    }
    image
}

fn write(step: &Step, name: &'static str, image: ImageBuilder, layout: &Path) -> Result<(), ImagesError> {
    let failed = |source| ImagesError::Build { name, source };
    let mut report = |progress: Progress| {
        let what = format!("{name}: {}, {}", progress.stage, progress.counted());
        step.counts(&what, progress.done_bytes, progress.total_bytes);
    };
    let image = image.build(&mut report).map_err(failed)?;
    image
        .write_layout(layout, Some(name), &mut report)
        .map_err(failed)
}
