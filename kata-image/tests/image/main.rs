//! Images against the kernel that mounts them and the tools that check them, and the store under stress.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod archives;
mod corpus;
mod forged;
mod hostile;
mod oracle;
mod random;
mod store;
mod trees;
mod unprivileged;
