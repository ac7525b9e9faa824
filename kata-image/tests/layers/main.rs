//! Layers of images: stacked by the kernel's overlayfs and merged into one, against the tools that everybody unpacks
//! images with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "../image/forged.rs"]
#[allow(dead_code, reason = "shared with the tests of whole archives")]
mod forged;
#[path = "../image/oracle.rs"]
#[allow(dead_code, reason = "shared with the tests of whole archives")]
mod oracle;

mod convert;
mod corpus;
mod hostile;
mod merge;
mod random;
mod size;
mod stack;
mod umoci;
mod verity;
