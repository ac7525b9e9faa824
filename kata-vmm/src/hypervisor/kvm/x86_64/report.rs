//! What this architecture's exits mean, and a processor's registers as text, for the report of one that stopped.
//!
//! It must not know what follows from an exit.
#![expect(unsafe_code, reason = "what KVM says of an exit is a union")]

use std::fmt::Write;

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// What it means when KVM says that a processor has shut down. Kernels are told of a reset register: whoever
/// faults three times has lost its way.
pub(in crate::hypervisor::kvm) const SHUTDOWN: &str = "a triple fault";

/// Whether an exit asks for nothing: an end-of-interrupt that nobody waits for, and a window for an interrupt that
/// the in-kernel controllers deliver.
pub(in crate::hypervisor::kvm) fn wants_nothing(exit: &VcpuExit<'_>) -> bool {
    matches!(exit, VcpuExit::IoapicEoi(_) | VcpuExit::IrqWindowOpen)
}

/// The registers, a few on a line; empty when KVM does not give them any more.
pub(in crate::hypervisor::kvm) fn describe(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => text(&regs, &sregs),
        _ => String::new(),
    }
}

/// For an internal error: which, and what KVM noted of it (KVM api.rst 5, `KVM_EXIT_INTERNAL_ERROR`).
pub(in crate::hypervisor::kvm) fn details(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return String::new();
    }
    // SAFETY: the reason says which member of the union KVM has filled; all of its fields are plain numbers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let kept = usize::try_from(internal.ndata).unwrap_or(usize::MAX);
    let data: Vec<String> = internal
        .data
        .iter()
        .take(kept)
        .map(|word| format!("{word:#x}"))
        .collect();
    format!(" {} [{}]", internal.suberror, data.join(", "))
}

fn text(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    let mut text = String::new();
    let lines: [&[(&str, u64)]; 6] = [
        &[
            ("rip", regs.rip),
            ("rflags", regs.rflags),
            ("rsp", regs.rsp),
            ("rbp", regs.rbp),
        ],
        &[
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
        ],
        &[
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("r8", regs.r8),
            ("r9", regs.r9),
        ],
        &[
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
        ],
        &[
            ("r14", regs.r14),
            ("r15", regs.r15),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
        ],
        &[
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("efer", sregs.efer),
            ("apic", sregs.apic_base),
        ],
    ];
    for line in lines {
        let words: Vec<String> = line
            .iter()
            .map(|(name, value)| format!("{name}={value:#x}"))
            .collect();
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    for (name, segment) in [("cs", &sregs.cs), ("ss", &sregs.ss), ("tr", &sregs.tr)] {
        describe_segment(&mut text, name, segment);
    }
    text.trim_end().to_owned()
}

fn describe_segment(text: &mut String, name: &str, segment: &kvm_segment) {
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{name}={:#x} base={:#x} limit={:#x} type={} dpl={} l={}",
        segment.selector, segment.base, segment.limit, segment.type_, segment.dpl, segment.l
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_there() {
        let regs = kvm_regs {
            rip: 0xffff_ffff_8100_0000,
            r15: 15,
            ..kvm_regs::default()
        };
        let text = text(&regs, &kvm_sregs::default());
        assert!(text.starts_with("rip=0xffffffff81000000 rflags=0x0"), "{text}");
        assert!(text.contains(" r15=0xf "), "{text}");
        assert!(
            text.ends_with("tr=0x0 base=0x0 limit=0x0 type=0 dpl=0 l=0"),
            "{text}"
        );
    }
}
