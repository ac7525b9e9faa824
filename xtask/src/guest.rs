//! `cargo xtask guest`: what a sandbox boots, made from kernels and our agent.
//!
//! ```text
//!  kernel package ──► vmlinux, its configuration   (extracted once, so that no boot pays for it)
//!                └──► modules ─┐
//!  kata-agent, static ─────────┼─► distribution/initramfs.cpio    /init, /lib/modules/{order,*.ko}
//!                ├─────────────┴─► tailored/initramfs.cpio        /init, where there is a tailored kernel
//!                └───────────────► kata-agent                     for sandboxes that are processes
//! ```
//!
//! It must not know how a machine is built; what the agent finds in its initramfs is in [`kata_image::guest`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use kata_image::guest::{
    Asset, AssetError, LayoutError, NotStatic, Set, check_static, directory, initramfs, install,
};
use kata_image::kernel::{ExtractError, ModuleError, ModuleTree, extract_vmlinux};
use sha2::{Digest, Sha256};

use crate::kernel::{self, Kernel, KernelError, Tailored, Variant};
use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::units::mib;
use crate::workspace::Workspace;

/// What an initramfs may have at most: every boot copies it, and every guest keeps `/init` in its memory.
const INITRAMFS_BYTES: u64 = 4 << 20;

/// What the linker leaves out; found from the workspace's root, where cargo links.
const SCRIPT: &str = "xtask/static.ld";

/// Static, and at a fixed address: each start of a position-independent program patches a quarter of a
/// megabyte of itself first, and the agent starts itself anew for every container. Cargo does not look into
/// the linker's script, so what is in it is among the flags.
fn flags() -> String {
    let script = hex::encode(Sha256::digest(include_bytes!("../static.ld")));
    format!(
        "-C target-feature=+crt-static -C relocation-model=static -C link-arg=-Wl,-T,{SCRIPT} -C metadata={}",
        &script[..16]
    )
}

/// Name of the file beside the kernel that says what it was extracted from.
const ORIGIN: &str = "vmlinux.origin";

/// Name of the kernel's configuration beside it.
const CONFIGURATION: &str = "vmlinux.config";

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
    /// The initramfs could not be put together.
    #[error("cannot make the initramfs")]
    Initramfs(#[from] LayoutError),
    /// The initramfs has grown.
    #[error(
        "the {set} initramfs has {bytes} bytes, and {INITRAMFS_BYTES} are allowed, since every boot copies it \
         (docs/kernel.md says what is in it); the agent has {agent} of them"
    )]
    TooLarge {
        /// Whose it is.
        set: &'static str,
        /// Its size.
        bytes: u64,
        /// The part of it that is the agent.
        agent: u64,
    },
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

/// Makes what is missing or has changed, says what there is, and gives back the kernel package that the
/// distribution's part is made of.
///
/// # Errors
/// When a part cannot be made; what was installed before stays.
pub(crate) fn make(workspace: &Workspace) -> Result<Kernel, GuestError> {
    let kernel = kernel::provide(&kata_image::cache_directory()?)?;
    let agent = build_static(workspace, &AGENT)?;
    let step = Step::start("guest");
    let place = Set::Distribution.directory()?;
    let archive = packed(Set::Distribution, &agent, Some(&kernel.modules))?;
    let mut made = vec![
        install_vmlinux(&place, &kernel)?,
        install_if_changed(&place, Asset::Initramfs.file_name(), &archive, 0o644)?,
        install_if_changed(&directory()?, Asset::Agent.file_name(), &agent, 0o755)?,
    ];
    if let Some(config) = &kernel.config {
        install_if_changed(&place, CONFIGURATION, &read(config)?, 0o644)?;
    }
    for variant in Variant::value_variants() {
        let place = place_of(*variant)?;
        if place.join(Asset::Kernel.file_name()).is_file() {
            made.push(install_tailored_initramfs(&place, &agent)?);
        }
    }
    step.done(format!("kernel {}, {}", kernel.version, summary(&made)));
    Ok(kernel)
}

/// Installs a tailored kernel with its initramfs, and gives back its path. From then on guests boot the default
/// variant; another is booted where it is asked for.
///
/// # Errors
/// When a part cannot be made; what was installed before stays.
pub(crate) fn install_tailored(workspace: &Workspace, tailored: &Tailored) -> Result<PathBuf, GuestError> {
    let agent = build_static(workspace, &AGENT)?;
    let step = Step::start(format!("guest ({} kernel)", tailored.variant.name()));
    let place = place_of(tailored.variant)?;
    let made = [
        install_if_changed(&place, CONFIGURATION, &read(&tailored.config())?, 0o644)?,
        install_if_changed(
            &place,
            Asset::Kernel.file_name(),
            &read(&tailored.vmlinux())?,
            0o644,
        )?,
        install_tailored_initramfs(&place, &agent)?,
    ];
    step.done(summary(&made));
    Ok(place.join(Asset::Kernel.file_name()))
}

/// Where a variant of the tailored kernel is: only the default's place is one that guests look into.
fn place_of(variant: Variant) -> Result<PathBuf, GuestError> {
    Ok(match variant {
        Variant::Default => Set::Tailored.directory()?,
        other => directory()?.join(format!("{}-{}", Set::Tailored.name(), other.name())),
    })
}

/// The tailored kernel, where it is installed.
///
/// # Errors
/// When there is no cache directory.
pub(crate) fn tailored_kernel() -> Result<Option<PathBuf>, GuestError> {
    let vmlinux = Set::Tailored.directory()?.join(Asset::Kernel.file_name());
    Ok(vmlinux.is_file().then_some(vmlinux))
}

/// The agent alone: everything else is built in.
fn install_tailored_initramfs(place: &Path, agent: &[u8]) -> Result<Installed, GuestError> {
    let archive = packed(Set::Tailored, agent, None)?;
    install_if_changed(place, Asset::Initramfs.file_name(), &archive, 0o644)
}

/// A set's initramfs, which must not grow.
fn packed(set: Set, agent: &[u8], modules: Option<&Path>) -> Result<Vec<u8>, GuestError> {
    let archive = initramfs(agent, modules)?;
    let bytes = len(&archive);
    if bytes > INITRAMFS_BYTES {
        return Err(GuestError::TooLarge {
            set: set.name(),
            bytes,
            agent: len(agent),
        });
    }
    Ok(archive)
}

/// A file in the guest directory.
#[derive(Debug)]
struct Installed {
    name: String,
    bytes: u64,
    changed: bool,
}

fn summary(made: &[Installed]) -> String {
    let told = made.iter().map(|file| {
        let state = if file.changed { "new" } else { "unchanged" };
        format!("{} {} ({state})", file.name, mib(file.bytes))
    });
    told.collect::<Vec<_>>().join(", ")
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
        .env("RUSTFLAGS", flags())
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

/// The modules to load for these to be there; of those in `where_present` only what the kernel has.
///
/// # Errors
/// When a module is missing or broken.
pub(crate) fn modules_of(
    directory: &Path,
    where_present: &[&'static str],
    required: &[&'static str],
) -> Result<Vec<(String, Vec<u8>)>, ModuleError> {
    ModuleTree::open(directory)?.contents(where_present, required)
}

/// Installs the kernel, unless what is there came from the same bzImage and is whole.
fn install_vmlinux(place: &Path, kernel: &Kernel) -> Result<Installed, GuestError> {
    let file = Asset::Kernel.file_name();
    let bzimage = read(&kernel.image)?;
    let digest = hex::encode(Sha256::digest(&bzimage));
    if let Ok(bytes) = fs::metadata(place.join(file)).map(|metadata| metadata.len())
        && fs::read_to_string(place.join(ORIGIN)).is_ok_and(|text| text == origin(kernel, &digest, bytes))
    {
        return Ok(installed(place, file, bytes, false));
    }
    let vmlinux = extract_vmlinux(&bzimage).map_err(|source| GuestError::Extract {
        path: kernel.image.clone(),
        source,
    })?;
    let bytes = len(&vmlinux);
    install(place, file, &vmlinux, 0o644)?;
    install(place, ORIGIN, origin(kernel, &digest, bytes).as_bytes(), 0o644)?;
    Ok(installed(place, file, bytes, true))
}

fn installed(place: &Path, file: &str, bytes: u64, changed: bool) -> Installed {
    let set = place.file_name().unwrap_or_default().to_string_lossy();
    let name = match Set::ALL.iter().any(|known| set.starts_with(known.name())) {
        true => format!("{set}/{file}"),
        false => file.to_owned(),
    };
    Installed { name, bytes, changed }
}

/// What [`ORIGIN`] says of a kernel.
fn origin(kernel: &Kernel, digest: &str, bytes: u64) -> String {
    format!(
        "kernel {}\nbzimage sha256:{digest}\nvmlinux {bytes} bytes\n",
        kernel.version
    )
}

/// Installs a file, unless it is there and the same.
fn install_if_changed(place: &Path, name: &str, content: &[u8], mode: u32) -> Result<Installed, GuestError> {
    let changed = fs::read(place.join(name)).ok().as_deref() != Some(content);
    if changed {
        install(place, name, content, mode)?;
    }
    Ok(installed(place, name, len(content), changed))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of this size: a header (elf(5)) without segments, and nothing.
    fn program(bytes: usize) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(bytes, 0);
        file[32] = 64;
        file[54] = 56;
        file
    }

    #[test]
    fn only_the_default_variant_is_where_guests_look() {
        let looked_into: Vec<PathBuf> = Set::ALL.iter().map(|set| set.directory().unwrap()).collect();
        for variant in Variant::value_variants() {
            let is_found = looked_into.contains(&place_of(*variant).unwrap());
            assert_eq!(is_found, *variant == Variant::Default, "{}", variant.name());
        }
        let place = place_of(Variant::NoMitigations).unwrap();
        assert!(
            place.ends_with("guest/tailored-no-mitigations"),
            "{}",
            place.display()
        );
    }

    #[test]
    fn an_initramfs_that_has_grown_is_not_made() {
        let limit = usize::try_from(INITRAMFS_BYTES).unwrap();
        let around = packed(Set::Tailored, &program(64), None).unwrap().len() - 64;
        let largest = program(limit - around);
        assert_eq!(packed(Set::Tailored, &largest, None).unwrap().len(), limit);
        let error = packed(Set::Tailored, &program(largest.len() + 1), None).unwrap_err();
        let expected = format!(
            "the tailored initramfs has 4194308 bytes, and 4194304 are allowed, since every boot copies it \
             (docs/kernel.md says what is in it); the agent has {} of them",
            largest.len() + 1
        );
        assert_eq!(error.to_string(), expected);
    }
}
