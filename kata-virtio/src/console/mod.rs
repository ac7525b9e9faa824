//! Virtio console (VIRTIO 1.2 §5.3): one port, whose bytes go to a descriptor of the host and come from
//! another.
//!
//! Owns what is between the queues and those descriptors. Knows guest memory and descriptors; must not
//! know who runs the guest, nor who reads the console.
//!
//! ```text
//!   guest driver                 this device                        host
//!  ┌──────────────┐
//!  │ transmitq ───┼─► backlog, at most 64 KiB, oldest dropped ──► output: pipe, file, socket, terminal
//!  │ emerg_wr ────┼─►    "
//!  │ receiveq ◄───┼── nothing is held ◄───────────────────────── input, read only into a buffer
//!  │ cols, rows ◄─┼── Handle::set_size
//!  └──────────────┘
//! ```
//!
//! - `device` the queues and the configuration · `host` the two descriptors · `backlog` what the host has
//!   not taken.
//! - **A guest never waits for its console.** Linux sends kernel messages with interrupts off and spins
//!   until the device has returned the buffer, so the device always returns it. What a host does not
//!   read is kept up to 64 KiB; then the oldest is dropped, because the last words of a guest are those
//!   that explain its end. What was dropped is counted.
//! - A terminal (the master of a pseudo-terminal) that nobody has open is a host that does not read and
//!   says nothing, until somebody opens it again. Any other end of the input is one for good.
//! - No `MULTIPORT` (§5.3.5): a second port costs queues and Linux' buffers for them, 12.7 MB of guest
//!   memory for 31.
//! - The descriptors become non-blocking, and so do other descriptors of the same open file: hand over
//!   some of its own. Sockets stay as they are. A pipe without a reader raises `SIGPIPE`, which Rust
//!   programs ignore and others should.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | flood of output, nobody reads | 64 KiB are kept, the rest is counted |
//! | flood of output, somebody reads | 256 KiB per turn, then the worker looks at everything else |
//! | chain of 4 GiB | taken in pieces, over turns |
//! | chain changed between turns | its next piece is judged anew; at worst its own output is wrong |
//! | chain without a readable (transmit) or writable (receive) buffer, buffers outside of memory | returned unused, counted, a rate-limited log line |
//! | chain with a loop, or that leaves its table, or of more buffers than the queue has | returned unused, counted, a rate-limited log line |
//! | no receive buffers | nothing is read from the host; its writers wait |
//! | receive buffers outside of memory | found before the host's bytes are read, none is lost |
//! | available index that jumps, head out of range, rings outside of memory | queues are dead until the driver resets the device |
//! | emergency writes in a flood, before or after it is ready | each is a byte of output |
//! | writes to other configuration bytes | no effect |
//! | escape sequences in its output | pass through: who shows them to a terminal decides what that means |
//! | reset in the middle of it all | the rest of the chain is forgotten, what was taken still goes out |

mod backlog;
mod device;
mod figures;
mod host;

pub use device::{Console, Handle, State};

/// Number of the queue that brings bytes to the guest (VIRTIO 1.2 §5.3.2).
pub const RX_QUEUE: u16 = 0;

/// Number of the queue that brings bytes from the guest.
pub const TX_QUEUE: u16 = 1;

/// Feature bit: the configuration space has the terminal's size (VIRTIO 1.2 §5.3.3).
pub const F_SIZE: u64 = 1 << 0;

/// Feature bit: a byte written to the configuration space is output (VIRTIO 1.2 §5.3.3).
pub const F_EMERG_WRITE: u64 = 1 << 2;

/// Bytes of output that are kept for a host that does not read.
pub const BACKLOG_BYTES: usize = 64 << 10;
