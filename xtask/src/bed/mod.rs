//! The nested bed: an outer guest with a genuine KVM, on any machine that has QEMU.
//!
//! ```text
//!  this machine ── QEMU in software, AMD SVM ── outer guest: a distribution's kernel, /dev/kvm
//!                                                  └── a monitor with KVM ── inner guest
//!
//!  layers of the outer root      from                                          made
//!   0  the distribution          the root filesystem of the tests              once, in the image store
//!   1  tools                     QEMU; that filesystem and kernel, as files  when one of them changes
//!   2  job                       the monitor, the guest's files, tests, orders every time
//! ```
//!
//! It owns what is in the bed and where. It must not know what a test is: [`crate::test`] gives the orders.

mod command;
mod initramfs;
mod layer;
mod libraries;
mod machine;
mod wire;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_image::guest::{Asset, Set};
use kata_image::{Source, SourceError, Store, StoreError};

use crate::process;
use crate::progress::Step;
use crate::setup::Ready;
use crate::workspace::Workspace;

pub(crate) use command::{Options, run};
use initramfs::InitramfsFailure;
use layer::{Layer, LayerError};
pub(crate) use machine::Clock;
use machine::{Listener, Machine, MachineError};
pub(crate) use wire::End;

/// Where the programs of this workspace are in the bed.
pub(crate) const PROGRAMS: &str = "/kata";

/// The tests' root filesystem, an image, in the bed.
const ROOTFS: &str = "/bed/rootfs.erofs";

/// The distribution's kernel as it is packaged.
const BZIMAGE: &str = "/bed/bzImage";

/// Images with real software, as an OCI layout.
const IMAGES: &str = "/bed/images";

/// The distribution's kernel in the bed, for the guests in it.
pub(crate) const KERNEL: &str = "/root/.cache/kata/guest/distribution/vmlinux";

/// The tailored kernel in the bed, where there is one.
pub(crate) const TAILORED: &str = "/root/.cache/kata/guest/tailored/vmlinux";

/// Where the SDK looks for the guest's files when `HOME` is `/root`.
const ASSETS: &str = "/root/.cache/kata/guest";

/// The monitor in the bed.
const MONITOR: &str = "/kata/kata-vmm";

/// Processors of the outer guest. With two, each on a thread of its own, QEMU 7.2 sometimes executes the
/// breakpoint that the kernel left for a moment in code that it was patching, long after the moment (an
/// `Oops: int3` in KVM, which patches whenever a guest starts or ends). Who has two cores runs two beds.
const VCPUS: u32 = 1;

/// Memory of the outer guest: eight inner guests, and the files that they are made of.
const MEMORY_MIB: u32 = 3072;

/// Why the bed could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BedError {
    /// The outer guest's initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsFailure),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The root filesystem is no root filesystem.
    #[error("cannot make the bed's root of the tests' root filesystem")]
    Source(#[from] SourceError),
    /// The root filesystem cannot be converted.
    #[error("cannot make the bed's root of the tests' root filesystem")]
    Store(#[from] StoreError),
    /// QEMU's emulator is not there.
    #[error("qemu-system-x86_64 is not on PATH")]
    NoQemu,
    /// No place for what is made.
    #[error(transparent)]
    Cache(#[from] kata_image::CacheDirectoryError),
    /// A temporary file.
    #[error("cannot write the bed's job")]
    Job(#[source] io::Error),
    /// The outer guest.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// What runs in the bed.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Variables beside those that every job has.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Programs of this machine by their path in the bed; their libraries come along.
    pub(crate) programs: Vec<(PathBuf, PathBuf)>,
    /// What the clock of the outer guest counts.
    pub(crate) clock: Clock,
    /// How long it may take.
    pub(crate) allowed: Option<Duration>,
}

/// A bed that is ready for jobs.
#[derive(Debug)]
pub(crate) struct Bed {
    cache: PathBuf,
    kernel: PathBuf,
    initramfs: Vec<u8>,
    base: PathBuf,
    tools: PathBuf,
    monitor: PathBuf,
    assets: PathBuf,
}

impl Bed {
    /// Makes everything but the job.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub(crate) fn make(workspace: &Workspace, ready: &Ready) -> Result<Self, BedError> {
        let initramfs = initramfs::make(workspace, &ready.kernel)?;
        let step = Step::start("bed");
        let cache = kata_image::cache_directory()?.join("bed");
        let store = Store::open(Store::default_directory()?)?;
        let base = store.rootfs(&Source::detect(&ready.rootfs)?, &mut |_| ())?.path;
        let tools = tools(&base, &ready.kernel.image, ready.images.as_deref())?.cached(&cache, "tools")?;
        step.done("");
        Ok(Self {
            cache,
            kernel: ready.vmlinux.clone(),
            initramfs,
            base,
            tools,
            monitor: ready.monitor.clone(),
            assets: kata_image::guest::directory()?,
        })
    }

    /// Runs a job; every line that it prints goes to `sink`.
    ///
    /// # Errors
    /// When there was no job, or no end of it in time.
    pub(crate) fn run(&self, job: &Job, sink: &mut dyn FnMut(&str)) -> Result<End, BedError> {
        self.execute(job, false, Listener::Lines(sink))
    }

    /// Runs a job on this process's terminal.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) fn run_on_terminal(&self, job: &Job) -> Result<End, BedError> {
        self.execute(job, true, Listener::Terminal)
    }

    fn execute(&self, job: &Job, terminal: bool, listener: Listener<'_>) -> Result<End, BedError> {
        let image = tempfile::Builder::new()
            .prefix(".job-")
            .tempfile_in(&self.cache)
            .map_err(BedError::Job)?;
        self.job_layer(job, terminal)?.write(image.path(), &self.cache)?;
        let machine = Machine {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            layers: vec![self.base.clone(), self.tools.clone(), image.path().to_owned()],
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            clock: job.clock,
        };
        Ok(machine.run(job.allowed, listener)?)
    }

    /// The uppermost layer: what changes with every build, and the orders.
    fn job_layer(&self, job: &Job, terminal: bool) -> Result<Layer, LayerError> {
        let mut layer = Layer::default();
        let agent = Asset::Agent.file_name();
        layer.copy(Path::new(ASSETS).join(agent), self.assets.join(agent));
        for set in Set::ALL {
            for asset in [Asset::Kernel, Asset::Initramfs] {
                let name = Path::new(set.name()).join(asset.file_name());
                // The distribution's is there always; a layer says so if it is not.
                if *set == Set::Distribution || self.assets.join(&name).is_file() {
                    layer.copy(Path::new(ASSETS).join(&name), self.assets.join(&name));
                }
            }
        }
        layer.link(MONITOR, &self.monitor);
        for (at, from) in &job.programs {
            layer.link(at, from);
        }
        let programs: Vec<&Path> = job.programs.iter().map(|(_, from)| from.as_path()).collect();
        layer.libraries(&[programs.as_slice(), &[&self.monitor]].concat())?;
        layer.text("/bed/job", description(job));
        if terminal {
            layer.text("/bed/shell", "");
        }
        Ok(layer)
    }
}

/// QEMU with its firmware, and the distribution once more, as the file that sandboxes are made of; its kernel, and the
/// images.
fn tools(base: &Path, bzimage: &Path, images: Option<&Path>) -> Result<Layer, BedError> {
    let mut layer = Layer::default();
    let qemu = process::find("qemu-system-x86_64").ok_or(BedError::NoQemu)?;
    layer.copy("/usr/bin/qemu-system-x86_64", &qemu);
    layer.libraries(&[&qemu])?;
    for directory in ["/usr/share/qemu", "/usr/share/seabios"] {
        layer.directory(Path::new(directory))?;
    }
    layer.copy(ROOTFS, base);
    layer.copy(BZIMAGE, bzimage);
    if let Some(images) = images {
        for directory in ["", "blobs/sha256"] {
            layer.files(&images.join(directory), &Path::new(IMAGES).join(directory))?;
        }
    }
    Ok(layer)
}

/// The job as `xtask/bed-init` reads it: variables, an empty word, the command; each ends with a zero byte.
fn description(job: &Job) -> Vec<u8> {
    let standard = [
        ("HOME", "/root"),
        (
            "PATH",
            "/kata:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("TERM", "linux"),
        ("KATA_VMM", MONITOR),
        ("KATA_TEST_ROOTFS", ROOTFS),
        ("KATA_TEST_BZIMAGE", BZIMAGE),
        ("KATA_TEST_IMAGES", IMAGES),
        ("RUST_BACKTRACE", "0"),
    ];
    let standard = standard.map(|(name, value)| (OsStr::new(name), OsStr::new(value)));
    let own = job
        .environment
        .iter()
        .map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let mut bytes = Vec::new();
    for (name, value) in standard.into_iter().chain(own) {
        bytes.extend([name.as_encoded_bytes(), b"=", value.as_encoded_bytes(), b"\0"].concat());
    }
    bytes.push(0);
    for word in &job.command {
        bytes.extend([word.as_encoded_bytes(), b"\0"].concat());
    }
    bytes
}
