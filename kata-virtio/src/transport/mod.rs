//! Transports inside the monitor: one state machine of a virtio device, and the registers in front of it.
//!
//! Owns the device's status, its features, its queues' places and the thread that serves it. Knows guest
//! memory and eventfds; must not know what the device does, who runs the guest, or where in the guest's
//! address space the registers are.
//!
//! ```text
//!              registers            status, features, rings         device, queues
//!  vCPU ───► Mmio (decoding) ───► Front (the rules) ─── start/stop ───► Worker, one thread
//!    ▲            │                     │                                 ▲  │
//!    │            └── kicks (eventfd) ──┼──────────── edge-triggered ─────┘  │
//!    └── interrupt (eventfd) ◄──────── Board (interrupt status, config) ◄────┘
//! ```
//!
//! The status of a device (VIRTIO 1.2 §2.1, §3.1.1); a write of any other kind changes nothing:
//!
//! ```text
//!  0 ── ACKNOWLEDGE ──► ── DRIVER ──► ── FEATURES_OK ──────► ── DRIVER_OK ──► active
//!  ▲                     features      refused unless          rings are         │
//!  │                     may be        offered and             fixed             │ a broken queue
//!  │                     written       VERSION_1; rings                          ▼
//!  │                                   may be written               active, DEVICE_NEEDS_RESET
//!  └───────────────────────── 0 written, at any time ────────────────────────────┘
//! ```
//!
//! Where device and queues are:
//!
//! ```text
//!   at rest ── DRIVER_OK, resume ──► serving ── its thread panicked ──► lost, until the end
//!      ▲                               │
//!      └──── reset, pause, drop ───────┘   stopping waits for one turn of the device; a pause also
//!                                          for what is in flight, for at most five seconds
//! ```
//!
//! Which thread runs the device's code, so that each can be confined to the system calls that it makes:
//!
//! | Thread | What of the device | Beyond memory and events it may call |
//! |---|---|---|
//! | its worker, named as the device, from `DRIVER_OK` or resume to the next stop | `poll`, `process`, `config`, `write_config`, `settled` | all that the device's work takes: files, sockets, `io_uring_enter`, `getrandom`, `madvise` |
//! | the vCPU at its registers, or whoever holds the [`Mmio`]: while there is no worker | `activate`, `reset`, `config`, `write_config`, `early_config` | what these take: `io_uring_enter` to wait for the kernel, `fdatasync` or `preadv` to end what it began, `TUNSETOFFLOAD`; `clone3`, `mmap`, `futex`, `epoll_create1`, `epoll_ctl` and `prctl` to start a worker, and the end of one to be waited for |
//! | whoever makes, pauses, resumes, saves or drops the [`Mmio`] | the same, and at the end `poll` and the device's drop | the same, `close` and `munmap` |
//!
//! A configuration write while the device is served is carried out by the worker: its vCPU waits for it,
//! so that what it reads next is what came of the write.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | registers that do not exist, of another width, unaligned, read-only or write-only ones the wrong way | reads give zeroes, writes nothing; counted, a rate-limited log line |
//! | steps of the initialisation left out, in another order, taken back | the status stays as it was |
//! | features that were not offered, or none of version 1 | `FEATURES_OK` does not stay set |
//! | features or rings changed after they were agreed | nothing changes |
//! | a queue that does not exist | it has size 0 and cannot be set up; a kick of it is nothing |
//! | rings outside of memory, unaligned, or of a size that is no power of two | the queue does not become ready |
//! | `DRIVER_OK` with queues left out | the device sees them as not ready |
//! | available index that jumps, head out of range | the device's matter: it asks for a reset, and its queues are left alone until then |
//! | configuration accesses beyond the end | reads give zeroes, writes nothing |
//! | a flood of configuration writes | each waits, on its vCPU, for the device's turn to end |
//! | a flood of kicks | they are one event; a device's turn is bounded |
//! | a flood of resets and starts | a thread ends and begins each time, on its vCPU's time |
//! | reset in flight | its vCPU waits until the turn is over; then everything is as at the beginning |
//! | interrupts never acknowledged | they are raised all the same |
//! | a device whose thread panics through it | `DEVICE_NEEDS_RESET` for good; the other devices go on |

mod board;
mod courtesy;
mod drain;
mod front;
mod mmio;
mod ring;
mod state;
mod worker;

pub(crate) use drain::drain;
pub use mmio::Mmio;
pub use state::{RingState, State};

use crate::Kind;

/// The name of a device's thread and of its log lines.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Net => "virtio-net",
        Kind::Block => "virtio-blk",
        Kind::Console => "virtio-console",
        Kind::Rng => "virtio-rng",
        Kind::Balloon => "virtio-balloon",
        Kind::Vsock => "virtio-vsock",
    }
}
