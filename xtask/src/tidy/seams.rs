//! Who may speak of hypervisors and architectures: each seam is one directory, and the words for what is behind it
//! stay there.
//!
//! Tests and documentation may say anything.

use super::Violation;
use super::facts::{Fact, Kind};

/// The only place with KVM calls.
const KVM: &str = "kata-vmm/src/hypervisor/kvm";

/// The only place in it that knows x86-64.
const X86: &str = "kata-vmm/src/hypervisor/kvm/x86_64";

/// Where the architecture is chosen, and called by its name.
const CHOICE: &str = "kata-vmm/src/hypervisor/kvm/mod.rs";

/// Parts of names that are x86's: its registers, tables and controllers.
const X86_WORDS: &[&str] = &[
    "x86", "cpuid", "sregs", "lapic", "ioapic", "tss", "msr", "rflags", "bzimage", "pvh",
];

/// The only place that knows how QEMU is run.
const QEMU: &str = "kata-vmm/src/hypervisor/qemu";

/// The seam: it names its backends, where they are looked for, and the reasons why one cannot run.
const SEAM: &[&str] = &[
    "kata-vmm/src/hypervisor/mod.rs",
    "kata-vmm/src/hypervisor/probe.rs",
    "kata-vmm/src/machine.rs",
];

/// The seam's own names, which its callers use.
const SEAM_NAMES: &[&str] = &["Qemu", "QemuKvm", "QemuTcg", "QemuUnusable", "qemu"];

/// What hardware is called in ACPI, whoever makes it: pvpanic.
const HARDWARE_IDS: &[&str] = &["QEMU0001"];

/// KVM calls outside of their room.
pub(super) fn kvm(path: &str, facts: &[Fact]) -> Vec<Violation> {
    if path.starts_with(KVM) || !is_library(path) {
        return Vec::new();
    }
    product(facts)
        .filter(
            |fact| matches!(&fact.kind, Kind::Name(name) if name == "kvm_ioctls" || name == "kvm_bindings"),
        )
        .map(|fact| Violation::at(path, fact.line, format!("KVM calls belong into {KVM}")))
        .collect()
}

/// What is x86's in the rest of the room of KVM.
pub(super) fn x86(path: &str, facts: &[Fact]) -> Vec<Violation> {
    if !path.starts_with(KVM) || path.starts_with(X86) || path == CHOICE {
        return Vec::new();
    }
    product(facts)
        .filter_map(|fact| match &fact.kind {
            Kind::Name(name) if is_x86(name) => Some((fact.line, name)),
            _ => None,
        })
        .map(|(line, name)| Violation::at(path, line, format!("{name} belongs into {X86}")))
        .collect()
}

fn is_x86(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    X86_WORDS.iter().any(|word| name.contains(word))
}

/// The word "qemu" outside of its room.
pub(super) fn qemu(path: &str, facts: &[Fact]) -> Vec<Violation> {
    if path.starts_with(QEMU) || SEAM.contains(&path) || !is_library(path) {
        return Vec::new();
    }
    product(facts)
        .filter_map(|fact| Some((fact.line, speaks_of_qemu(&fact.kind)?)))
        .map(|(line, word)| Violation::at(path, line, format!("{word} belongs into {QEMU}")))
        .collect()
}

fn speaks_of_qemu(kind: &Kind) -> Option<&str> {
    let word = match kind {
        Kind::Name(name) if !SEAM_NAMES.contains(&name.as_str()) => name,
        Kind::Literal(text) if !HARDWARE_IDS.contains(&text.trim_matches('"')) => text,
        _ => return None,
    };
    word.to_ascii_lowercase()
        .contains("qemu")
        .then_some(word.as_str())
}

fn product(facts: &[Fact]) -> impl Iterator<Item = &Fact> {
    facts.iter().filter(|fact| !fact.test)
}

/// Whether a file is part of what an embedder compiles.
fn is_library(path: &str) -> bool {
    path.starts_with("kata-") && path.contains("/src/")
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;

    #[test]
    fn kvm_calls_outside_of_their_room_are_found() {
        let facts = sample("use kvm_ioctls::Kvm;");
        assert_eq!(kvm("kata-sandbox/src/probe.rs", &facts).len(), 1);
        assert_eq!(kvm("kata-vmm/src/hypervisor/kvm/mod.rs", &facts), []);
    }

    #[test]
    fn the_architecture_outside_of_its_room_is_found() {
        let facts =
            sample("use super::x86_64::layout; fn f(vcpu: &VcpuFd) { vcpu.get_sregs(); Cap::SetTssAddr; }");
        assert_eq!(x86("kata-vmm/src/hypervisor/kvm/assemble.rs", &facts).len(), 3);
        assert_eq!(x86("kata-vmm/src/hypervisor/kvm/x86_64/entry.rs", &facts), []);
        assert_eq!(x86("kata-vmm/src/hypervisor/kvm/mod.rs", &facts), []);
        let facts = sample("use super::arch::layout; #[cfg(test)] mod tests { fn f() { set_sregs(); } }");
        assert_eq!(x86("kata-vmm/src/hypervisor/kvm/assemble.rs", &facts), []);
    }

    #[test]
    fn the_word_outside_of_its_room_is_found() {
        let facts = sample("const A: &str = \"qemu-system-x86_64\"; fn start_qemu() {}");
        assert_eq!(qemu("kata-sandbox/src/launch.rs", &facts).len(), 2);
        assert_eq!(qemu("kata-vmm/src/hypervisor/qemu/arguments.rs", &facts), []);
    }

    #[test]
    fn the_seams_names_tests_and_documentation_may_be_used() {
        let facts = sample(
            "/// Not QEMU.\nfn f() { Backend::QemuTcg; }\n#[cfg(test)] mod tests { const A: &str = \"qemu\"; }",
        );
        assert_eq!(qemu("kata-sandbox/src/sandbox.rs", &facts), []);
        let facts = sample("const PVPANIC: &str = \"QEMU0001\";");
        assert_eq!(
            qemu("kata-vmm/src/hypervisor/kvm/x86_64/boot/acpi.rs", &facts),
            []
        );
        let facts = sample("const A: &str = \"qemu\";");
        assert_eq!(qemu("kata-sandbox/tests/run.rs", &facts), []);
        assert_eq!(qemu("xtask/src/packages.rs", &facts), []);
    }
}
