//! How often the processors came back to the monitor, and what for.
//!
//! Owns the kinds and their names. It must not know how an exit is handled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

/// Kinds of exits to the monitor (KVM api.rst 5, `exit_reason`), and of answers of `KVM_RUN` that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Kind {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    Halt,
    Shutdown,
    SystemEvent,
    /// A signal: the monitor wanted something.
    Interrupted,
    /// KVM asked to be called again.
    Again,
    Other,
}

const NAMES: [(&str, Kind); 10] = [
    ("port read", Kind::PortRead),
    ("port write", Kind::PortWrite),
    ("mmio read", Kind::MmioRead),
    ("mmio write", Kind::MmioWrite),
    ("halt", Kind::Halt),
    ("shutdown", Kind::Shutdown),
    ("system event", Kind::SystemEvent),
    ("interrupted", Kind::Interrupted),
    ("again", Kind::Again),
    ("other", Kind::Other),
];

impl From<&VcpuExit<'_>> for Kind {
    fn from(exit: &VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoIn(..) => Self::PortRead,
            VcpuExit::IoOut(..) => Self::PortWrite,
            VcpuExit::MmioRead(..) => Self::MmioRead,
            VcpuExit::MmioWrite(..) => Self::MmioWrite,
            VcpuExit::Hlt => Self::Halt,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::SystemEvent(..) => Self::SystemEvent,
            VcpuExit::Intr => Self::Interrupted,
            _ => Self::Other,
        }
    }
}

/// The counts of all processors together.
#[derive(Debug, Default)]
pub(super) struct Exits([AtomicU64; NAMES.len()]);

impl Exits {
    pub(super) fn count(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that happened, by name.
    pub(super) fn by_name(&self) -> BTreeMap<String, u64> {
        NAMES
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), self.0[*kind as usize].load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_place() {
        for (position, (_, kind)) in NAMES.iter().enumerate() {
            assert_eq!(*kind as usize, position);
        }
        let exits = Exits::default();
        exits.count(Kind::from(&VcpuExit::IoOut(1, &[])));
        exits.count(Kind::from(&VcpuExit::IoOut(1, &[])));
        exits.count(Kind::Again);
        let expected = [("again".to_owned(), 1), ("port write".to_owned(), 2)];
        assert_eq!(exits.by_name(), expected.into());
    }
}
