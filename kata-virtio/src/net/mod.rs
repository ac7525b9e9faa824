//! Network device (VIRTIO 1.2 §5.1): Ethernet frames between a guest and a tap of its host.
//!
//! Owns everything between the guest's queues and the tap's descriptors. Knows guest memory and
//! descriptors of the host; must not know who runs the guest (KVM, QEMU), how the queues were set up,
//! nor what the network behind the tap is.
//!
//! ```text
//!   guest driver              this device                               host
//!  ┌────────────┐
//!  │ transmit 0 ┼─► chain ┬► header, copied once ─► judged ┬► writev ─► tap queue 0
//!  │            │         └► frame, where it lies ─────────┘               │
//!  │ receive  0 ◄┼─ chains ◄─ header with num_buffers ◄─ one frame ◄─ read ──┘
//!  │ transmit n ┼─►   the same for each pair of queues       ─────────────────► tap queue n
//!  │ control    ┼─► pairs in use ─► TUNSETQUEUE
//!  │ config     ◄┼─ link status ◄── Handle::set_link, or the tap is gone
//!  └────────────┘
//! ```
//!
//! - `tap` descriptors and ioctls, the only unsafe code here · `header` the frame's header and its rules ·
//!   `features` bits and what they need · `chains` bytes in descriptor chains · `limits` rates ·
//!   `rotation` whose turn it is · `outgoing` a frame from chain to tap · `pair` a turn of a pair of
//!   queues · `control` commands · `link` the cable · `device` the whole.
//! - Checksums and segmentation are the kernel's on either side: a frame of 64 KiB passes as one.
//! - Frames of the host stay in the tap while the driver has no buffer for them; when its ring is full,
//!   the kernel drops them. Frames of the guest stay in the queue while the tap takes none (`EAGAIN`).
//!   What the kernel refuses for another reason is lost and counted, as on any wire.
//! - The worker is one thread; nothing in it waits.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | chain without a header, buffer outside of memory, chain with a loop or that leaves its table | chain is returned unused, counted, a rate-limited log line |
//! | frame below 14 or above 65550 bytes | not sent, counted |
//! | checksum or headers beyond the frame, segments of no bytes | not sent, counted |
//! | segmentation or checksum that it did not negotiate | not sent, counted |
//! | header changed after the check | it is copied once, then judged, and the copy is what the tap gets |
//! | frame changed while it is sent | that version or this is on the wire; its place and length are copies |
//! | frame that the kernel finds wrong all the same | `EINVAL`, counted |
//! | receive buffers too small for a header | returned unused, counted; the frame waits |
//! | receive buffers too small for the frame, all of the ring | frame is dropped and counted |
//! | no receive buffers | the tap is not read, and not looked at until the next kick |
//! | kicks without buffers | a look at the ring each |
//! | flood of frames | 256 frames or 2 MiB per turn and direction, then everything else; its rate limit |
//! | unknown commands, more pairs than there are | `VIRTIO_NET_ERR` |
//! | pairs changed again and again | 4 commands per turn, on its worker's time |
//! | available index that jumps, head out of range, rings outside of memory | queues are dead until the driver resets the device |
//! | reset in the middle of it all | the frame that waited for buffers is lost |
//! | features that make no sense together | those without their base count as not chosen |
//! | legacy driver | its queues are not served |
//! | any address, any frame | it reaches the tap: who is on that network decides what it may do there |
//! | frame in more than 1024 buffers | chains are returned unused, counted; a frame of the host waits |
//!
//! Memory that a guest can make the device hold: two buffers of 64 KiB for each pair (one of them only if it
//! cuts a frame into a thousand pieces), and 32 KiB that say where a frame's buffers are.

mod chains;
mod control;
mod counters;
mod device;
mod features;
mod header;
mod limits;
mod link;
mod outgoing;
mod pair;
mod rotation;
mod tap;

pub use device::{Error, MAX_QUEUE_PAIRS, MIN_MTU, Net, State};
pub use features::Features;
pub use header::{DATA_VALID, FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, NEEDS_CSUM};
pub use link::Handle;
pub use tap::{Tap, TapError};
