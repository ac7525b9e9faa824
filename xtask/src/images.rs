//! Images with real software for the tests: an OCI layout of the root filesystem, and of programs on top of it.
//!
//! ```text
//!  root filesystem ─► base            a layer that the others share
//!  packages that it lacks ─► python, redis
//! ```
//!
//! Packages are unpacked and not installed: programs that need no set-up run from their files alone. It owns which
//! programs; how they are tested it must not know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_image::{BuildError, Image, ImageBuilder, LayerCompression, LayoutError, Platform, Progress};

use sha2::{Digest as _, Sha256};

use crate::making::{MakingError, file, program};
use crate::partial::Partial;
use crate::process;
use crate::progress::Step;
use crate::units::mib;

/// A program as an image.
#[derive(Debug)]
struct Program {
    name: &'static str,
    package: &'static str,
    cmd: &'static [&'static str],
    port: Option<&'static str>,
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "python",
        package: "python3-minimal",
        cmd: &["python3"],
        port: None,
    },
    Program {
        name: "redis",
        package: "redis-server",
        cmd: &["redis-server", "--save", "", "--bind", "127.0.0.1"],
        port: Some("6379/tcp"),
    },
];

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
    hex::encode(&Sha256::digest(format!("{PROGRAMS:?}"))[..4])
}

fn make(rootfs: &Path, layout: &Path) -> Result<(), ImagesError> {
    let step = Step::start("images of python and redis (once)");
    let directory = layout.parent().unwrap_or(Path::new("/"));
    let partial = Partial::new(directory, ".images").map_err(file("write into", directory))?;
    let base = Image::builder()
        .archive(rootfs)
        .compression(LayerCompression::Zstd)
        .cmd(["/bin/sh"]);
    write(&step, "base", base, partial.path())?;
    for program in PROGRAMS {
        step.says(program.package);
        let tree = tempfile::tempdir_in(directory).map_err(file("write into", directory))?;
        unpack(&step, rootfs, program.package, tree.path())?;
        let base = Image::open(partial.path(), Some("base"), &Platform::host(), directory)?;
        let mut image = Image::builder()
            .base(base)
            .directory(tree.path().join("root"))
            .cmd(program.cmd.iter().copied());
        if let Some(port) = program.port {
            image = image.exposed_port(port);
        }
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

/// Unpacks a package, and those that it needs and the root filesystem lacks, into `root` below `tree`.
fn unpack(step: &Step, rootfs: &Path, package: &str, tree: &Path) -> Result<(), ImagesError> {
    let status = tree.join("status");
    let mut read_status = process::command("tar", ["-xOf"]);
    read_status.arg(rootfs).arg("./var/lib/dpkg/status");
    let text =
        process::read(&mut read_status).map_err(program("read the packages of the root filesystem"))?;
    fs::write(&status, text).map_err(file("write", &status))?;
    let mut simulate = process::command(
        "apt-get",
        ["install", "--simulate", "--no-install-recommends", "-o"],
    );
    simulate
        .arg(format!("Dir::State::status={}", status.display()))
        .arg(package);
    let plan = process::read(&mut simulate).map_err(program("ask what a package needs"))?;
    let mut download: Command = process::command("apt-get", ["download"]);
    download.args(missing(&plan)).current_dir(tree);
    process::run(step, &mut download).map_err(program("download packages"))?;
    let root = tree.join("root");
    for entry in fs::read_dir(tree).map_err(file("read", tree))? {
        let path = entry.map_err(file("read", tree))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = process::command("dpkg-deb", ["-x"]);
            process::run(step, unpack.arg(&path).arg(&root)).map_err(program("unpack a package"))?;
        }
    }
    merge_usr(step, &root)
}

/// Moves what packages have below `/lib` and its like to where the links of the root filesystem lead: as directories of
/// a layer they would take the links' places.
fn merge_usr(step: &Step, root: &Path) -> Result<(), ImagesError> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let (from, to) = (root.join(name), root.join("usr").join(name));
        if !from.is_dir() || from.is_symlink() {
            continue;
        }
        fs::create_dir_all(&to).map_err(file("create", &to))?;
        let mut copy = process::command("cp", ["--archive", "--no-target-directory"]);
        process::run(step, copy.arg(&from).arg(&to)).map_err(program("copy files of a package"))?;
        fs::remove_dir_all(&from).map_err(file("remove", &from))?;
    }
    Ok(())
}

/// The packages that `apt-get --simulate` would install.
fn missing(plan: &str) -> Vec<&str> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_what_is_missing() {
        let plan = "NOTE: This is only a simulation!\n\
                    Inst libexpat1 (2.5.0-1 Debian:12/stable [amd64])\n\
                    Inst python3-minimal (3.11.2-1 Debian:12/stable [amd64]) []\n\
                    Conf libexpat1 (2.5.0-1 Debian:12/stable [amd64])\n";
        assert_eq!(missing(plan), ["libexpat1", "python3-minimal"]);
    }
}
