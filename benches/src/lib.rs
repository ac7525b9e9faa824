//! What several benchmarks share: figures, what the kernel says of a monitor, and our monitor as a process.
//!
//! It must not know what is measured.

pub mod figure;
pub mod guest;
pub mod monitor;
pub mod observe;
