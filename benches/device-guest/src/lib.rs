//! What the guest of `cargo xtask bench devices` and its host agree on: which phases there are, what is on
//! the disk and in the streams, and the addresses of the network.
//!
//! ```text
//!  host: benches/src/bin/devices                      guest: src/main.rs, PID 1
//!    listens on HOST:PORT  ◄── control: a line each way around every phase ── measures disk and network
//!                          ◄── one connection for each phase of the network
//! ```
//!
//! It must not know monitors.

pub mod link;
pub mod pattern;
pub mod phase;
