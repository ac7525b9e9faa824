//! Guest kernels: a distribution's, taken as it is, and the tailored one, built from its source.
//!
//! ```text
//!  <cache>/kernel/<version>/           a distribution's image package, unpacked      distribution
//!                /source-<version>/    its source package's archive                  source
//!                /tailored-<hash>/     vmlinux, vmlinux.unstripped, config           build
//! ```
//!
//! Nothing is ever installed on this machine, and what is in the cache is used as it is.
//! It must not know what a guest does with a kernel.

mod build;
mod config;
mod distribution;
mod source;

pub(crate) use build::{TailorError, Tailored, reproduce, tailor};
pub(crate) use config::Variant;
pub(crate) use distribution::{Kernel, KernelError, provide};

/// Orders versions by their numbers: 6.12.9 comes before 6.12.117.
fn version_key(version: &str) -> Vec<u64> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}
