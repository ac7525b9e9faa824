//! Virtio devices in safe Rust.
#![forbid(unsafe_code)]

#[cfg(feature = "mock")]
pub mod mock;
pub mod vhost_user;
pub mod vsock;
