#![doc = include_str!("../README.md")]
//!
//! # Rooms
//!
//! - [`Device`]: what every device is to every transport.
//! - [`block`]: the block device.
//! - [`vsock`]: the socket device.
//! - [`net`]: the network device.
//! - [`console`]: the console.
//! - [`balloon`]: memory that goes back to the host.
//! - [`rng`]: the entropy source, the smallest device.
//! - [`transport`]: the transports inside a monitor.
//! - [`vhost_user`]: the transport for frontends in other processes.
//! - `mock` (feature `mock`): a guest's driver, for tests and benchmarks.
//!
//! This crate knows guest memory, queues and file descriptors; never KVM, QEMU, containers or agents.
#![deny(unsafe_code)]

pub mod balloon;
pub mod block;
mod buffers;
mod complaint;
pub mod console;
mod device;
#[cfg(feature = "mock")]
pub mod mock;
pub mod net;
mod queue;
mod rate_limit;
pub mod rng;
pub mod transport;
mod vectors;
pub mod vhost_user;
pub mod vsock;

pub use device::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};
pub use rate_limit::{Rate, RateLimit};
