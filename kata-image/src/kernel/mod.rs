//! Guest kernels: finding one, what it can do, unpacking it and its modules. Knows files, not guests.
//!
//! ```no_run
//! use kata_image::kernel::{Feature, Kernel};
//!
//! let kernel = Kernel::find(None)?;
//! println!("{} is {}", kernel.path().display(), kernel.release().unwrap_or("of unknown release"));
//! for (feature, ability) in kernel.abilities() {
//!     println!("{feature}: {ability}");
//! }
//! println!("directories of the host: {}", kernel.ability(Feature::VirtioFs));
//! # Ok::<(), kata_image::kernel::FindKernelError>(())
//! ```

mod compression;
mod configuration;
pub(crate) mod elf;
mod features;
mod find;
mod inspect;
mod modules;
mod vmlinux;

pub use compression::DecompressError;
pub use features::{Ability, Feature};
pub use find::FindKernelError;
pub(crate) use find::HostKernels;
pub use inspect::{Kernel, KernelError};
pub use modules::{Module, ModuleError, ModuleTree};
pub use vmlinux::{ExtractError, extract_vmlinux};

#[cfg(test)]
pub(crate) mod tests {
    use super::configuration::tests::embed;
    use super::inspect::tests::{config, vmlinux};

    /// A kernel with everything that a sandbox needs, but for these options.
    pub(crate) fn vmlinux_of(without: &[&str]) -> Vec<u8> {
        vmlinux(true, &embed(&config("y", without)))
    }
}
