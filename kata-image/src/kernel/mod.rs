//! Distribution kernels: unpacking the kernel and finding and unpacking its modules. Knows files, not guests.

mod compression;
mod elf;
mod modules;
mod vmlinux;

pub use compression::DecompressError;
pub use modules::{Module, ModuleError, ModuleTree};
pub use vmlinux::{ExtractError, extract_vmlinux};
