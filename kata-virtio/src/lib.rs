//! Virtio devices in safe Rust.
#![forbid(unsafe_code)]

pub mod vhost_user;
pub mod vsock;
