//! The monitor: one process that owns one microVM.
//!
//! The SDK opens every file, starts this program with a control socket as its standard input, and
//! sends a [`Machine`](machine::Machine) with the descriptors it needs.
//! The monitor builds the machine on one of its hypervisors, serves its devices, reports what
//! happens as [`Event`](control::Event)s, and ends with the machine.
//! When the other end of the control socket closes, the machine is killed.
//!
//! It knows machines, devices and guest memory.
//! It must not know images, agents, containers or OCI.

pub mod control;
pub mod hypervisor;
pub mod machine;
pub mod monitor;

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
