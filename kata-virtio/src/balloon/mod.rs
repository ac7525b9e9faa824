//! Virtio memory balloon (VIRTIO 1.2 §5.5): gives guest memory that the guest does not use back to the
//! host.
//!
//! Owns what the driver says about its pages, and the calls that free them. Knows guest memory; must not
//! know who runs the guest, nor who decides how much memory it gets.
//!
//! ```text
//!   guest driver                    this device                                      host
//!  ┌──────────────┐   parse: pages, sorted, merged   execute, a part per turn
//!  │ inflateq  ───┼─► page numbers ──┐
//!  │ reporting ───┼─► ranges ────────┴─► whole pages inside of memory ──► hole in the memfd (shared)
//!  │ deflateq  ───┼─► counted                                             dropped copy (private)
//!  │ statsq    ◄──┼─► held until asked ─────────────────────────────────► Handle::statistics
//!  │ num_pages ◄──┼── Handle::set_target_bytes
//!  │ actual    ───┼─────────────────────────────────────────────────────► Handle::actual_bytes
//!  └──────────────┘
//! ```
//!
//! - `pages` page numbers and ranges, pure · `discard` one range given back · `config` the configuration
//!   space · `statistics` what the guest says of its memory · `handle` the host's side · `requests` a
//!   request, a part per turn · `device` the queues.
//! - Free page reporting is on by itself; without it the guest's memory on the host only grows.
//! - Pages of the balloon are not kept from the guest: it may use one without asking
//!   (`VIRTIO_BALLOON_F_MUST_TELL_HOST` is not offered) and finds zeroes in it, or what a template has
//!   there.
//! - A guest that wants to find its poison in reported pages (`VIRTIO_BALLOON_F_PAGE_POISON`), or zeroes
//!   where the memory is a private mapping of a template, keeps them: they are not given back.
//!
//! # The queues' numbers
//!
//! §5.5.2 numbers the queues 0 to 4, with or without those between them. Linux numbers those that its
//! features leave, so free page reporting without hinting is queue 3 there, or 2 without statistics.
//! Both are served: queues 3 and 4 take reports, queue 2 does when statistics were not chosen.
//!
//! # What a hostile driver can try
//!
//! | It tries | What happens |
//! |---|---|
//! | pages beyond its memory, ranges that begin inside and end outside, lengths up to 4 GiB | what is inside is given back, the rest is counted, a rate-limited log line |
//! | parts of pages | whole pages inside are given back |
//! | pages that it still uses, its kernel, its queues | it has zeroes there, as if it had written them |
//! | memory that it may only read (a file mapped into it) | never given back: counted as an error |
//! | the same pages again and again | a cheap call each, 256 of them per turn |
//! | a report of all its memory | 64 MiB per turn, then the worker looks at everything else |
//! | chain changed between turns | its rest is judged anew |
//! | chain without a buffer of the right direction, page numbers that are cut | returned, counted, a rate-limited log line |
//! | chain with a loop, or that leaves its table, or of more buffers than the queue has | returned, counted, a rate-limited log line |
//! | available index that jumps, head out of range, rings outside of memory | queues are dead until the driver resets the device |
//! | statistics of any length, unknown tags, nonsense | 64 entries are read, unknown ones left out, numbers are claims |
//! | two buffers for statistics | the second is returned, counted |
//! | no answer for statistics | who asked waits without a thread; nothing polls; 64 can wait |
//! | flood of statistics nobody asked for | held or returned, 256 chains per turn |
//! | `actual` and `poison_val` at will | it is what it claims; nothing is decided by `actual` |
//! | writes to `num_pages` | no effect |
//! | target ignored | it keeps its memory: the target is a request, a limit is the host's cgroup |
//! | reset in the middle of it all | the rest of the chain is forgotten |

mod config;
mod device;
mod discard;
mod handle;
mod pages;
mod requests;
mod statistics;

pub use device::{Balloon, State};
pub use handle::Handle;
pub use statistics::Statistics;

/// Bytes of a page, whatever the guest's or the host's are (VIRTIO 1.2 §5.5.6).
pub const PAGE_BYTES: u64 = 4096;

/// Number of the queue by which pages go into the balloon (VIRTIO 1.2 §5.5.2).
pub const INFLATE_QUEUE: u16 = 0;

/// Number of the queue by which pages come out of it.
pub const DEFLATE_QUEUE: u16 = 1;

/// Number of the queue of statistics.
pub const STATISTICS_QUEUE: u16 = 2;

/// Number of the queue of free pages as Linux has it. See the module.
pub const REPORTING_QUEUE: u16 = 3;

/// Number of the queue of free pages as the specification has it.
pub const REPORTING_QUEUE_BY_THE_BOOK: u16 = 4;

/// Feature bit: the driver answers with statistics (VIRTIO 1.2 §5.5.3).
pub const F_STATS_VQ: u64 = 1 << 1;

/// Feature bit: the driver may take pages out of the balloon when it is out of memory.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;

/// Feature bit: the driver says what it fills free pages with.
pub const F_PAGE_POISON: u64 = 1 << 4;

/// Feature bit: the driver reports free pages.
pub const F_REPORTING: u64 = 1 << 5;
