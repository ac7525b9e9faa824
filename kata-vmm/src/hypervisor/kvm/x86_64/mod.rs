//! The x86-64 machine, from "guest memory exists" to "the boot processor may run".
//!
//! ```text
//!  layout ──► boot::load ──► Entry ──► processor::prepare_vcpu ──► KVM_RUN
//!    │          │ kernel: PVH ELF, plain ELF, bzImage
//!    │          │ initramfs, command line, memory map
//!    │          └ ACPI tables, or the MP table
//!    └── where devices, tables and registers are
//! ```
//!
//! It owns addresses, tables, boot protocols and the processors' first state, and is the only place of
//! the project that knows them. [`probe`] has a guest of its own that says whether any of this can run.
//! Most is plain computation on guest memory; KVM calls are made by the probe, [`platform`], [`processor`],
//! [`state`] and [`vm_state`].
//! It must not know threads, exits, devices beyond their [slot](layout::Slot), or what the guest is for.

pub(super) mod boot;
pub(super) mod command_line;
pub(super) mod layout;
pub(super) mod platform;
pub(super) mod probe;
pub(super) mod processor;
mod report;
#[cfg_attr(not(test), expect(dead_code, reason = "snapshots come later"))]
pub(super) mod state;
#[cfg_attr(not(test), expect(dead_code, reason = "snapshots come later"))]
pub(super) mod vm_state;

pub(super) use report::{SHUTDOWN, describe, details, wants_nothing};

mod cpuid;
mod entry;
#[cfg(test)]
mod tiny;
