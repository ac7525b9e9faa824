//! Virtio socket device (VIRTIO 1.2 §5.10): stream sockets between a guest and its host.
//!
//! Owns everything between the guest's queues and Unix streams on the host. Knows guest memory and
//! descriptors; must not know who runs the guest (KVM, QEMU) nor how the queues were set up.
//!
//! ```text
//!   guest driver                      this device                                   host
//!  ┌───────────┐   device     muxer      session (one per connection)
//!  │ tx queue ─┼─► packets ─► by ports ─► credit, states ─► buffer ≤ 256 KiB ─► UnixStream
//!  │ rx queue ◄┼── packets ◄─ in turn  ◄─ credit, states ◄─ read-ahead ≤ 64 KiB ◄── "
//!  │ event q.  │                 ▲
//!  └───────────┘                 └─ Handle::connect, Vsock::listen, Vsock::on_dial
//! ```
//!
//! - `packet` header and its rules · `transfer` packets in descriptor chains · `credit`, `connection`
//!   pure state · `session` a connection and its stream · `greeter` the Unix-socket face · `muxer` all
//!   connections · `queues` the queues.
//! - Back-pressure: the host's stream is read only when the guest has a receive buffer and credit; the
//!   guest gets new credit only when the host's stream has taken what it sent.
//! - The worker is one thread; nothing in it waits.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | short chain, length beyond the chain, buffer outside of memory | chain is returned unused, counted, a rate-limited log line |
//! | payload above 64 KiB, payload on a control packet | not read, reset |
//! | unknown type or operation, another destination CID | reset |
//! | another source CID | dropped: nobody can be answered in another's name |
//! | packet for an unknown connection | reset; a reset is never answered |
//! | operation that does not fit the state, payload after its shutdown | connection ends with a reset |
//! | more payload than its credit | connection ends with a reset; the buffer never grows beyond the credit |
//! | credit that shrinks or claims the unsent | it is sent nothing until its numbers make sense |
//! | header changed after the check | headers and payload are copied once, then judged |
//! | chain with a loop or thousands of buffers | cut off at the size of the queue |
//! | available index that jumps, head out of range, rings outside of memory | queues are dead until the driver resets the device; connections end |
//! | no receive buffers | nothing is read from the host; its writers wait |
//! | flood of packets that need resets, no receive buffers | transmit queue pauses at 256 waiting resets |
//! | connections opened and reset again, no receive buffers | their places in the line are swept out |
//! | flood of any packets | 1024 packets per turn, then the worker looks at everything else |
//! | thousands of connections | refused above 1024, counting those that only drain |
//! | host that does not read | guest's credit runs out; at most 256 KiB are held |
//! | reset in the middle of it all | connections end; what it had sent still drains |
//! | guessing host ports | `on_dial` decides; without it every dial is refused |
//!
//! Memory that a guest can make the device hold: 1024 × (256 KiB + 64 KiB), in streams that the host
//! gave and does not serve.

mod connection;
mod counters;
mod credit;
mod greeter;
mod muxer;
pub mod packet;
mod queues;
mod session;
mod transfer;

pub use counters::Counters;
pub use queues::{Handle, Vsock};

/// Context id of the host (VIRTIO 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;

/// Number of the queue that brings packets to the guest (VIRTIO 1.2 §5.10.2).
pub const RX_QUEUE: u16 = 0;

/// Number of the queue that brings packets from the guest.
pub const TX_QUEUE: u16 = 1;

/// Number of the queue that brings events to the guest.
pub const EVENT_QUEUE: u16 = 2;
