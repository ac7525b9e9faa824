//! Stage 6: the one place that opens what a sandbox needs.
//!
//! Everything made here is owned by [`Prepared`]; dropping it at any point takes all of it back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_image::guest::{self, AssetError, Assets};
use kata_image::{ReadyImage, Rootfs, Store, StoredHashTree, WritableError};
use kata_vmm::machine::{Machine, MiB};

use crate::container::Container;
use crate::error::{Error, ErrorKind};
use crate::plan::{Asset, Layer, Plan, Proof};
use crate::report::Stage;

/// What the monitor needs, opened.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) machine: Machine,
    /// In the order of the machine's [`FdIndex`](kata_vmm::machine::FdIndex)es.
    pub(crate) fds: Vec<OwnedFd>,
    /// The monitor program.
    pub(crate) monitor: PathBuf,
    /// The guest's kernel, where there is a guest.
    pub(crate) kernel: Option<PathBuf>,
}

/// Opens what `plan` names for `container`, off the caller's runtime threads: where nothing else is there, a kernel of
/// the host is made ready first.
pub(crate) async fn prepare(
    plan: &Plan,
    image: ReadyImage,
    store: Store,
    container: &Container,
) -> Result<Prepared, Error> {
    let (plan, container) = (plan.clone(), container.clone());
    tokio::task::spawn_blocking(move || open_all(plan, image, &store, &container))
        .await
        .map_err(|cause| {
            Error::new(ErrorKind::Io, Stage::Prepare, "the runtime is shutting down").with_source(cause)
        })?
}

fn open_all(plan: Plan, image: ReadyImage, store: &Store, container: &Container) -> Result<Prepared, Error> {
    let overrides = &container.overrides;
    let monitor = find_monitor(overrides.monitor.as_deref())?;
    let mut boot: Option<Assets> = None;
    let (mut layers, mut trees) = (Vec::new(), Vec::new());
    for layer in image.layers {
        layers.push(layer.file);
        trees.extend(layer.hash_tree.map(|tree| tree.file));
    }
    let (mut layers, mut trees) = (layers.into_iter(), trees.into_iter());
    let mut fds = Vec::with_capacity(plan.assets.len());
    for asset in &plan.assets {
        let file = match asset {
            Asset::Kernel => open(&boot_files(&mut boot, &overrides.guest)?.kernel)?,
            Asset::Initramfs => open(&boot_files(&mut boot, &overrides.guest)?.initramfs)?,
            Asset::Agent => open(&guest::Asset::Agent.find(&overrides.guest).map_err(missing)?)?,
            Asset::Kvm => open_kvm()?,
            Asset::Layer => layers.next().ok_or_else(|| lacking("a layer"))?,
            Asset::HashTree => trees.next().ok_or_else(|| lacking("a hash tree"))?,
            Asset::Writable { size, name } => writable(store, *size, name.as_deref())?,
        };
        fds.push(OwnedFd::from(file));
    }
    Ok(Prepared {
        machine: plan.machine,
        fds,
        monitor,
        kernel: boot.map(|assets| assets.kernel),
    })
}

fn lacking(what: &str) -> Error {
    let message = format!("the plan has {what} that the image has not");
    Error::new(ErrorKind::Image, Stage::Prepare, message)
}

/// What a tree is known by.
pub(crate) fn proof(tree: &StoredHashTree) -> Proof {
    Proof {
        root_hash: tree.tree.root_hash,
        salt: tree.salt.as_bytes().to_vec(),
        data_blocks: tree.tree.data_blocks,
    }
}

/// What a plan has to know of the layers.
pub(crate) fn layers(image: &ReadyImage) -> Vec<Layer> {
    let layer = |layer: &Rootfs| Layer {
        proof: layer.hash_tree.as_ref().map(proof),
    };
    image.layers.iter().map(layer).collect()
}

fn writable(store: &Store, size: MiB, name: Option<&str>) -> Result<File, Error> {
    let made = match name {
        None => store.scratch(size.bytes()),
        Some(name) => store.kept(name, size.bytes()),
    };
    made.map(|writable| writable.file).map_err(|cause| {
        let kind = match &cause {
            WritableError::InUse { .. } => ErrorKind::InvalidState,
            WritableError::NoMke2fs => ErrorKind::MissingAsset,
            WritableError::Io { .. } | WritableError::Mke2fs { .. } => ErrorKind::Io,
            _ => ErrorKind::InvalidContainer,
        };
        Error::new(kind, Stage::Prepare, "no disk to write to").with_source(cause)
    })
}

fn open_kvm() -> Result<File, Error> {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|cause| Error::new(ErrorKind::Io, Stage::Prepare, "cannot open /dev/kvm").with_source(cause))
}

/// Kernel and initramfs, which are found together.
fn boot_files<'a>(found: &'a mut Option<Assets>, overrides: &guest::Overrides) -> Result<&'a Assets, Error> {
    match found {
        Some(assets) => Ok(assets),
        None => Ok(found.insert(Assets::provide(overrides).map_err(missing)?)),
    }
}

fn missing(cause: AssetError) -> Error {
    let message = match &cause {
        AssetError::Kernel(_) => "the guest kernel cannot be used",
        _ => "a guest asset is missing",
    };
    Error::new(ErrorKind::MissingAsset, Stage::Prepare, message).with_source(cause)
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|cause| {
        let message = format!("cannot open {}", path.display());
        Error::new(ErrorKind::MissingAsset, Stage::Prepare, message).with_source(cause)
    })
}

/// The monitor: named, `KATA_VMM`, beside the current executable, in the cache directory, on `PATH`.
pub(crate) fn find_monitor(explicit: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = explicit
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os("KATA_VMM").map(Into::into))
    {
        // Absolute, or a bare name would be looked up on PATH when it is executed.
        return match std::path::absolute(&path) {
            Ok(path) if path.is_file() => Ok(path),
            _ => Err(no_monitor(&[path])),
        };
    }
    let candidates = monitor_candidates();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(no_monitor(&candidates)),
    }
}

fn monitor_candidates() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    if let Some(beside) = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf))
    {
        // cargo keeps tests in deps/ and examples in examples/, below the programs.
        if beside.ends_with("deps") || beside.ends_with("examples") {
            directories.extend(beside.parent().map(Path::to_path_buf));
        }
        directories.insert(0, beside);
    }
    directories.extend(kata_image::cache_directory().ok().map(|cache| cache.join("bin")));
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    directories
        .into_iter()
        .map(|directory| directory.join("kata-vmm"))
        .collect()
}

fn no_monitor(looked_in: &[PathBuf]) -> Error {
    let places: Vec<String> = looked_in.iter().map(|path| path.display().to_string()).collect();
    let message = format!(
        "the monitor kata-vmm was not found ({}); install it with `cargo install kata-vmm`, run `cargo xtask \
         quickstart`, or name it by KATA_VMM",
        places.join(", ")
    );
    Error::new(ErrorKind::MissingAsset, Stage::Prepare, message)
}
