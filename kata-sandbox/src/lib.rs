//! Run code that you do not trust: every container in a virtual machine of its own.
//!
//! ```no_run
//! use kata_sandbox::{Container, MiB, Sandbox};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), kata_sandbox::Error> {
//!     let container = Container::new("debian.tar").args(["sh", "-c", "uname -a; exit 7"]).memory(MiB(256));
//!     let output = Sandbox::run(container).await?;
//!     print!("{}", String::from_utf8_lossy(&output.stdout));
//!     assert_eq!(output.status.code(), 7);
//!     Ok(())
//! }
//! ```
//!
//! [`Sandbox::run`] is the whole life of a container in one call. To keep a machine and run several
//! programs in it, [`Sandbox::boot`] a container without arguments and [`exec`](Sandbox::exec) in it.
//! Programs that are not asynchronous use [`blocking`].
//!
//! # Glossary
//!
//! - **Sandbox**: one microVM with its agent. It costs a monitor process, a hypervisor, and the memory
//!   that the guest touches ([`report::Usage`]). It lives until it is stopped or dropped.
//! - **Container**: what runs in it: a root filesystem, a program, a user. It sees a Linux system of its
//!   own and nothing of the host. A sandbox is booted with one, and more can
//!   [join](Sandbox::create_container) it as in a pod: they share its network and IPC, and
//!   [limits](process::Limits) divide its memory and processors between them.
//! - **Process**: the container's own program, or one that [`exec`](Sandbox::exec) added. Its streams
//!   are connections into the guest; its end is its exit, not the end of its output.
//! - **Terminal**: what a process has in place of three streams where a person sits in front of it
//!   ([`Container::terminal`], [`Command::terminal`]).
//! - **Image**: where the root filesystem comes from, and what its author says about its containers. Its layers
//!   are turned into read-only EROFS images once and cached ([`image`]); what a container writes stays in the
//!   guest's memory, or on a disk of its own, and dies with it unless it is kept.
//! - **Backend**: the hypervisor. [`Backend::Auto`] takes the best that the host can run;
//!   [`Sandbox::info`] says which and why.
//! - **Monitor**: the process `kata-vmm` that owns one machine. When the program that uses this library
//!   dies, its monitors and machines die too.
//! - **Agent**: PID 1 of the guest, which makes containers on our behalf.
//!
//! # What is needed
//!
//! A guest kernel, an initramfs with the agent, the program `kata-vmm`, and QEMU where KVM cannot be used.
//! `cargo xtask quickstart` in the project's checkout makes all of them; each can also be named on a
//! [`Container`] or by `KATA_KERNEL`, `KATA_INITRAMFS`, `KATA_VMM` and `KATA_QEMU`. Where there is an agent and
//! no kernel, one of `/boot` that has what a guest needs is made ready, once, and kept in the cache.
//!
//! This library starts no threads but those of the caller's runtime, installs no signal handler and no
//! log subscriber (it logs by `tracing`), and changes neither the environment nor the working directory.

#![forbid(unsafe_code)]

pub mod blocking;
mod bundle;
mod connect;
mod container;
mod copied;
mod copy;
mod creation;
mod defaults;
pub mod doctor;
mod ending;
mod error;
mod events;
mod host;
pub mod image;
mod launch;
mod limits;
mod link;
mod logs;
mod members;
mod oci;
mod output;
mod patience;
mod plan;
mod prepare;
pub mod process;
mod questions;
mod receipt;
pub mod report;
mod sandbox;
mod seccomp;
mod shelf;
mod signal;
mod spec;
mod stats;
mod supervise;
mod terminal;
mod usage;
mod vsock;

pub use container::{Command, Container};
pub use error::{Error, ErrorKind};
pub use kata_vmm::hypervisor::Backend;
pub use kata_vmm::machine::MiB;
pub use members::ContainerHandle;
pub use output::Output;
pub use process::Process;
pub use sandbox::Sandbox;
