//! Block device (VIRTIO 1.2 §5.2): a raw file or a block device of the host as a disk of the guest, or a
//! [`Shelf`] of files that come and go while the guest runs.
//!
//! Owns everything between the guest's queues and the file. Knows guest memory and descriptors; must not
//! know who runs the guest, how the queues were set up, or what is on the disk.
//!
//! ```text
//!   guest driver          this device                                              host
//!  ┌───────────┐  parse              judge              execute
//!  │ queue 0…n ┼──────► Request ────────────► Work ────────────► Executor ┬ plain ──► preadv, pwritev
//!  │           │          │ no request         │ refused           ▲      └ io_uring ► in the kernel
//!  │           ◄──────────┴── status ──────────┴───────────────────┼──── finished ◄──────┘
//!  └───────────┘                                              rate limit
//! ```
//!
//! - `request` the layout of a request · `verdict` what it comes to · `layout` features and configuration
//!   space: all three pure · `disk` the file · `extents` which file is where on a shelf, `shelf` what is on it · `kernel` guest memory for io_uring, the only unsafe code
//!   · `engine` at once or in the ring · `events` what wakes the worker · `turn` how much is done at once · `clear` discards and zeroes ·
//!   `answer` the end of a request · `device` the queues.
//! - The worker is one thread. Plain requests, discards and writes of zeroes are carried out in it, one
//!   after the other; what the ring has, the kernel works on meanwhile.
//! - A read that was answered from a file that was cut short since, a full disk, a broken disk: the driver
//!   is told `VIRTIO_BLK_S_IOERR`, the log gets a line now and then, the counter counts.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | short header, no byte for the status, status outside of memory | chain is returned unused, counted, a rate-limited log line |
//! | chain with a loop, of 4 GiB and more, of more than 512 descriptors, buffers in the wrong order | the same |
//! | data outside of memory | fails with `IOERR`; nothing is read or written |
//! | sector beyond the end, or so large that the end wraps | `IOERR` |
//! | data of no or half sectors, data in the wrong direction | `IOERR` |
//! | unknown type, unknown flag | `UNSUPP` |
//! | discard or zeroes that it did not negotiate | `UNSUPP` |
//! | more ranges or sectors than the configuration space says | `IOERR`; not even the first range is touched |
//! | more data than `seg_max` segments of `size_max` have | `IOERR` |
//! | any write to a read-only disk | `IOERR`; the file need not even be open for writing |
//! | header or range changed after the check | they are copied once, then judged |
//! | data changed while it is written | that version or this is on its own disk |
//! | a read that begins in one extent of a shelf and ends in another, or before the first, where zeroes are | all of it is read |
//! | a read of what no extent has, or has no more | `IOERR`, also when only its last sector is there; nothing is read |
//! | half blocks where direct I/O has larger ones | `IOERR`; it was told the block size |
//! | buffers at odd addresses in direct I/O | copied through memory of at most 1 MiB |
//! | flood of any requests | 128 or 4 MiB a turn, and one request of 16 MiB at most beyond that; then answers are signalled and the worker looks at everything else |
//! | flood on one queue | every turn begins with another one when there is more than it takes |
//! | all requests at once | 128 are in the kernel, the others stay in the queue |
//! | more than its rate | requests stay in the queue until the timer says so; zeroes count as what is written |
//! | available index that jumps, rings outside of memory | queues are dead until the driver resets the device |
//! | reset while the kernel works for it | waits for the kernel; what the kernel was not given yet never gets there, and nothing touches guest memory any more |

mod answer;
mod builder;
mod clear;
mod counters;
mod device;
mod disk;
mod engine;
mod events;
mod extents;
mod kernel;
mod layout;
mod request;
mod shelf;
mod turn;
mod verdict;

pub use builder::{BuildError, Builder};
pub use counters::Counters;
pub use device::{Block, State};
pub use engine::Engine;
pub use extents::{Extent, SHELF_BYTES};
pub use shelf::{Shelf, ShelfError, ShelfState};
