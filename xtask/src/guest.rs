//! `cargo xtask guest`: what a sandbox boots, made from a distribution's kernel and our agent.
//!
//! ```text
//!  kernel package ──► vmlinux            (extracted once, so that no boot pays for it)
//!                └──► modules ─┐
//!  kata-agent, static ─────────┴─► initramfs.cpio      /init, /lib/modules/{order,*.ko}
//!                └───────────────► kata-agent          for sandboxes that are processes
//! ```
//!
//! It must not know how a machine is built; what the agent finds in its initramfs is in [`layout`].

mod elf;
mod layout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_image::guest::{Asset, AssetError, directory, install};
use kata_image::kernel::{ExtractError, ModuleError, ModuleTree, extract_vmlinux};
use sha2::{Digest, Sha256};

use self::elf::{NotStatic, check_static};
use self::layout::{Found, LayoutError, initramfs};
use crate::kernel::{self, Kernel, KernelError};
use crate::process::{self, ProcessError};
use crate::progress::{self, Step};
use crate::units::mib;
use crate::workspace::Workspace;

/// What a guest needs of its kernel beyond what is built in, with what it depends on: a root filesystem on a
/// block device, a way to the host, an overlay.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport",
    "overlay",
    "erofs",
];

/// What a machine may have beside that, by the start of its modalias (VIRTIO 1.2 §5; ACPI): a balloon, which
/// gives free pages back; an entropy source; a device that is told of a panic.
const FOUND: &[(&str, &str)] = &[
    ("virtio:d00000005", "virtio_balloon"),
    ("virtio:d00000004", "virtio-rng"),
    ("acpi:QEMU0001:", "pvpanic-mmio"),
];

/// What a module of the list needs and does not name: until Linux 6.14 erofs asks the crypto API for the
/// algorithm crc32c, which some module must have brought by then. Later kernels have no such module.
const ALGORITHMS: &[&str] = &["crc32c-intel"];

/// An initramfs above this is worth a word: every boot copies it.
const INITRAMFS_BYTES: u64 = 4 << 20;

/// Static, and at a fixed address: each start of a position-independent program patches a quarter of a
/// megabyte of itself first, and the agent starts itself anew for every container.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Name of the file beside the assets that says what the kernel was extracted from.
const ORIGIN: &str = "vmlinux.origin";

/// Why the guest could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A static program does not build.
    #[error("cannot build {package}")]
    Build {
        /// Its package.
        package: &'static str,
        /// What cargo said.
        #[source]
        source: ProcessError,
    },
    /// The agent would need files that no guest has.
    #[error("{} cannot be a guest's init", path.display())]
    NotStatic {
        /// The agent.
        path: PathBuf,
        /// What was found.
        #[source]
        source: NotStatic,
    },
    /// The kernel package is not what it is expected to be.
    #[error("cannot extract the kernel of {}", path.display())]
    Extract {
        /// The bzImage.
        path: PathBuf,
        /// Why.
        #[source]
        source: ExtractError,
    },
    /// A module is missing or broken.
    #[error("cannot take the guest's modules from {}", path.display())]
    Modules {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: ModuleError,
    },
    /// The initramfs could not be put together.
    #[error("cannot make the initramfs")]
    Initramfs(#[from] LayoutError),
    /// The result could not be installed.
    #[error("cannot install the guest's files")]
    Install(#[from] AssetError),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// No place for what is made.
    #[error(transparent)]
    Cache(#[from] kata_image::CacheDirectoryError),
}

/// Makes what is missing or has changed, says what there is, and gives back the kernel it is made for.
///
/// # Errors
/// When a part cannot be made; what was installed before stays.
pub(crate) fn make(workspace: &Workspace) -> Result<Kernel, GuestError> {
    let kernel = kernel::provide(&kata_image::cache_directory()?)?;
    let agent = build_static(workspace, &AGENT)?;
    let step = Step::start("guest");
    let made = [
        install_vmlinux(&kernel)?,
        install_if_changed(
            Asset::Initramfs.file_name(),
            &initramfs(&agent, &modules(&kernel)?, &found(&kernel)?)?,
            0o644,
        )?,
        install_if_changed(Asset::Agent.file_name(), &agent, 0o755)?,
    ];
    step.done(summary(&kernel, &made));
    if made[1].bytes > INITRAMFS_BYTES {
        progress::note(format!(
            "the initramfs is larger than {}: every boot copies it",
            mib(INITRAMFS_BYTES)
        ));
    }
    Ok(kernel)
}

/// A file in the guest directory.
#[derive(Debug)]
struct Installed {
    name: &'static str,
    bytes: u64,
    changed: bool,
}

fn summary(kernel: &Kernel, made: &[Installed]) -> String {
    let mut text = format!("kernel {}", kernel.version);
    for file in made {
        let state = if file.changed { "new" } else { "unchanged" };
        text.push_str(&format!(", {} {} ({state})", file.name, mib(file.bytes)));
    }
    text
}

/// A static program that a guest starts as its init.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// For people.
    pub(crate) what: &'static str,
    /// The package, and the executable of that name.
    pub(crate) package: &'static str,
}

/// The agent of a sandbox.
const AGENT: Program = Program {
    what: "agent, static",
    package: "kata-agent",
};

/// Builds a program in a target directory of its own, so that its flags disturb no other build.
///
/// # Errors
/// When it does not build, or is not static.
pub(crate) fn build_static(workspace: &Workspace, program: &Program) -> Result<Vec<u8>, GuestError> {
    let step = Step::start(program.what);
    let target = guest_target();
    let directory = workspace.target.join("guest");
    let mut cargo = workspace.cargo(&["build", "--profile=guest", "--package", program.package]);
    cargo
        .arg(format!("--target={target}"))
        .arg("--target-dir")
        .arg(&directory);
    cargo
        .env("RUSTFLAGS", STATIC)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run(&step, &mut cargo).map_err(|source| GuestError::Build {
        package: program.package,
        source,
    })?;
    let path = directory.join(target).join("guest").join(program.package);
    let executable = read(&path)?;
    check_static(&executable).map_err(|source| GuestError::NotStatic { path, source })?;
    step.done(mib(len(&executable)));
    Ok(executable)
}

/// glibc and not musl: every installation of Rust has this target, and Debian has its static libraries.
fn guest_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The modules' file names and contents, in the order that loads.
fn modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>, GuestError> {
    modules_of(&kernel.modules, ALGORITHMS, MODULES).map_err(|source| GuestError::Modules {
        path: kernel.modules.clone(),
        source,
    })
}

/// The modules for devices that a machine may have; those that the kernel has.
fn found(kernel: &Kernel) -> Result<Vec<Found>, GuestError> {
    let mut found = Vec::new();
    for &(device, module) in FOUND {
        let modules = modules_of(&kernel.modules, &[module], &[]).map_err(|source| GuestError::Modules {
            path: kernel.modules.clone(),
            source,
        })?;
        if !modules.is_empty() {
            found.push((device, modules));
        }
    }
    Ok(found)
}

/// The modules to load for these to be there; of those in `where_present` only what the kernel has.
///
/// # Errors
/// When a module is missing or broken.
pub(crate) fn modules_of(
    directory: &Path,
    where_present: &[&'static str],
    required: &[&'static str],
) -> Result<Vec<(String, Vec<u8>)>, ModuleError> {
    let tree = ModuleTree::open(directory)?;
    let mut names = Vec::new();
    for name in where_present {
        match tree.resolve(&[name]) {
            Ok(_) => names.push(*name),
            Err(ModuleError::Missing { needed_by: None, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    names.extend(required);
    tree.resolve(&names)?
        .iter()
        .map(|module| Ok((format!("{}.ko", module.name), module.read()?)))
        .collect()
}

/// Installs the kernel, unless what is there came from the same bzImage and is whole.
fn install_vmlinux(kernel: &Kernel) -> Result<Installed, GuestError> {
    let name = Asset::Kernel.file_name();
    let bzimage = read(&kernel.image)?;
    let digest = hex::encode(Sha256::digest(&bzimage));
    let installed = fs::metadata(directory()?.join(name)).map(|metadata| metadata.len());
    if let Ok(bytes) = installed
        && fs::read_to_string(directory()?.join(ORIGIN))
            .is_ok_and(|text| text == origin(kernel, &digest, bytes))
    {
        return Ok(Installed {
            name,
            bytes,
            changed: false,
        });
    }
    let vmlinux = extract_vmlinux(&bzimage).map_err(|source| GuestError::Extract {
        path: kernel.image.clone(),
        source,
    })?;
    let bytes = len(&vmlinux);
    install(name, &vmlinux, 0o644)?;
    install(ORIGIN, origin(kernel, &digest, bytes).as_bytes(), 0o644)?;
    Ok(Installed {
        name,
        bytes,
        changed: true,
    })
}

/// What [`ORIGIN`] says of a kernel.
fn origin(kernel: &Kernel, digest: &str, bytes: u64) -> String {
    format!(
        "kernel {}\nbzimage sha256:{digest}\nvmlinux {bytes} bytes\n",
        kernel.version
    )
}

/// Installs a file, unless it is there and the same.
fn install_if_changed(name: &'static str, content: &[u8], mode: u32) -> Result<Installed, GuestError> {
    let changed = fs::read(directory()?.join(name)).ok().as_deref() != Some(content);
    if changed {
        install(name, content, mode)?;
    }
    Ok(Installed {
        name,
        bytes: len(content),
        changed,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(path).map_err(|source| GuestError::Read {
        path: path.to_owned(),
        source,
    })
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
