//! Who makes a root filesystem of the image: our store, and the programs that do so without us. Each is a process of
//! its own, begins with nothing, and has its result on the disk when it ends.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::process::{self, Cost};

/// A directory for one round, on the filesystem of all others.
#[derive(Debug)]
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Makes it, and writes what others left to be written, so that they pay for it.
    ///
    /// # Errors
    /// When it cannot be made or the filesystem not be written.
    pub(crate) fn new(work: &Path) -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir_in(work)?;
        let place = Self { directory };
        std::fs::create_dir(place.cache())?;
        std::os::unix::fs::symlink(
            kata_image::cache_directory()?.join("guest"),
            place.cache().join("guest"),
        )?;
        rustix::fs::syncfs(std::fs::File::open(place.directory.path())?)?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The cache of our programs: an empty store beside the guest's files of this machine.
    fn cache(&self) -> PathBuf {
        self.path("cache")
    }
}

/// What our programs print.
#[derive(Debug, Clone, Default, Deserialize, serde::Serialize)]
pub(crate) struct Run {
    /// Host probed and image ready.
    pub(crate) image_us: u64,
    /// The first byte of the container's output.
    pub(crate) first_output_us: u64,
    /// What ran it.
    pub(crate) hypervisor: String,
}

/// A program of this executable.
fn ours(words: &[&str], place: &Place) -> Result<Command, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).env("KATA_CACHE_DIR", place.cache());
    Ok(command)
}

/// Our store, from a reference to images that a machine can have as disks.
///
/// # Errors
/// When the image cannot be pulled.
pub(crate) fn pull(reference: &str, place: &Place) -> Result<Cost, Box<dyn Error>> {
    Ok(process::run(&mut ours(&["pull", reference], place)?)?.0)
}

/// A sandbox that says one line.
///
/// # Errors
/// When it does not.
pub(crate) fn run(reference: &str, place: &Place) -> Result<Run, Box<dyn Error>> {
    let (_, text) = process::run(&mut ours(&["run", reference], place)?)?;
    Ok(serde_json::from_str(&text)?)
}

/// How long our store takes for an image that it has, again and again, in microseconds.
///
/// # Errors
/// When it has not.
pub(crate) fn again(reference: &str, place: &Place) -> Result<Vec<u64>, Box<dyn Error>> {
    let (_, text) = process::run(&mut ours(&["again", reference], place)?)?;
    Ok(serde_json::from_str(&text)?)
}

/// The steps of the pipeline.
pub(crate) const STEPS: [&str; 4] = ["skopeo copy", "umoci unpack", "mkfs.erofs", "sync"];

/// The image of mkfs.erofs.
const THEIRS: &str = "image.erofs";

/// From the same reference to one image: a layout, a directory, an EROFS image. What each step cost, in the order of
/// [`STEPS`].
///
/// # Errors
/// When a step fails.
pub(crate) fn pipeline(reference: &str, place: &Place) -> Result<[Cost; 4], Box<dyn Error>> {
    let (layout, bundle, image) = (place.path("layout"), place.path("bundle"), place.path(THEIRS));
    let tagged = format!("{}:latest", layout.display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--src-tls-verify=false"]);
    skopeo
        .arg(format!("docker://{reference}"))
        .arg(format!("oci:{tagged}"));
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &tagged]);
    if !rustix::process::geteuid().is_root() {
        umoci.arg("--rootless");
    }
    umoci.arg(&bundle);
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.arg("--quiet").arg(&image).arg(bundle.join("rootfs"));
    // Our store syncs what it keeps.
    let mut sync = Command::new("sync");
    sync.arg(&image);
    let cost = |step: &mut Command| Ok::<_, Box<dyn Error>>(process::run(step)?.0);
    Ok([
        cost(&mut skopeo)?,
        cost(&mut umoci)?,
        cost(&mut mkfs)?,
        cost(&mut sync)?,
    ])
}

/// What our writer made of the directory that mkfs.erofs had before it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Writer {
    pub(crate) cost: Cost,
    /// Sizes of both images.
    pub(crate) bytes: u64,
    pub(crate) mkfs_bytes: u64,
}

/// Our writer on the tree that the [`pipeline`] left in `place`, which was just written and read for both.
///
/// # Errors
/// When it fails.
pub(crate) fn writer(place: &Place) -> Result<Writer, Box<dyn Error>> {
    let (tree, image) = (place.path("bundle/rootfs"), place.path("ours.erofs"));
    let path = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path that is no text");
    let (cost, _) = process::run(&mut ours(&["write", &path(&tree)?, &path(&image)?], place)?)?;
    let size = |path: &Path| Ok::<_, std::io::Error>(path.metadata()?.len());
    Ok(Writer {
        cost,
        bytes: size(&image)?,
        mkfs_bytes: size(&place.path(THEIRS))?,
    })
}
