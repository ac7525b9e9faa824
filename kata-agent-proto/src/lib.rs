#![doc = include_str!("../README.md")]
//!
//! This crate owns what travels between a host and the agent inside a guest: messages, ports, the
//! first words, typed failures, and a client. It must not know how a connection is made, what a
//! virtual machine is, or how the agent does what it is asked.

mod call;
mod client;
mod failure;
pub mod files;
mod frames;
mod guest_client;
mod hello;
pub mod kernel_log;
mod offer;
#[allow(
    clippy::allow_attributes_without_reason,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    unused_imports,
    reason = "generated code; the .proto files carry the documentation"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}
mod text;

pub use call::CallError;
pub use client::{Client, READ_MAX_BYTES};
pub use failure::{Failed, FailureKind};
pub use generated::{agent, agent_ttrpc, csi, health, health_ttrpc, kata, kata_ttrpc, oci, types};
pub use hello::{HELLO_MAX_BYTES, Hello, HelloError, PROTOCOL, read_end, read_hello, write_hello};
pub use offer::offered;

/// Annotations of an OCI specification that the agent understands.
pub mod annotation {
    /// Directories that the container is to have, one absolute path a line: those that its root lacks are made,
    /// root's, with mode 0755.
    pub const DIRECTORIES: &str = "kata-rs.container.directories";
}

/// Driver options of a storage that the agent understands, beside Kata Containers' own.
pub mod storage {
    /// Begins the option of a storage that is a part of a disk: the byte where the part begins follows. Together
    /// with [`SIZE`].
    pub const OFFSET: &str = "kata-rs.storage.offset=";
    /// Begins the option that says how many bytes the part has.
    pub const SIZE: &str = "kata-rs.storage.size=";
    /// Begins the option of a disk that is read through dm-verity. Four words follow, with blanks between them: the
    /// serial of the disk with the hash tree, the disk's blocks of 4096 bytes, and root hash and salt in hexadecimal.
    /// The tree has its superblock in front, as `veritysetup` writes it, and is of SHA-256. Where the tree is a part
    /// of a disk, the serial is followed by `@`, the byte where the part begins, `+` and its bytes.
    pub const VERITY: &str = "kata-rs.storage.dm-verity=";
}

/// The ports of the agent's connections. A port is a vsock port in a guest, and a number beside the
/// descriptor where the agent is an ordinary process.
pub mod port {
    /// The agent's API (ttrpc), served by the guest. Kata Containers' published port.
    pub const AGENT: u32 = 1024;
    /// Standard streams, served by the guest: one connection for each stream. The agent knows a stream
    /// by the port that it comes from, which the host chooses and names as `stdin_port`,
    /// `stdout_port` or `stderr_port` in a request. Kata Containers' published port for such streams.
    pub const STREAM: u32 = 1027;
    /// [`Hello`](crate::Hello), served by the host; the guest dials it once when it is ready.
    pub const HELLO: u32 = 1030;
}
