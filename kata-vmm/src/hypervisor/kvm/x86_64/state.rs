//! Everything that a stopped vCPU is, taken from KVM and given back.
//!
//! ```text
//!  vCPU (stopped, no exit half done) ── save ──► VcpuState ── restore ──► a new vCPU of a new VM
//! ```
//!
//! Owns the set of what makes a vCPU, and the order in which KVM takes it. The sizes that a snapshot holds are
//! asserted when this is compiled: whoever changes one changes the snapshot's version.
//! It must not know files, nor how a vCPU is stopped.
//!
//! The extended state has KVM's fixed 4 KiB: features with more are offered only to a process that asked the
//! kernel for them (`ARCH_REQ_XCOMP_GUEST_PERM`), which the monitor does not.

#![expect(
    unsafe_code,
    reason = "KVM_SET_XSAVE reads as much as the vCPU's features need"
)]

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// `IA32_TSC_DEADLINE` (Intel SDM 4, MSR 0x6e0): means something only with the counter and the APIC timer's
/// mode in place, so it is the last to be restored.
const TSC_DEADLINE: u32 = 0x6e0;

/// A vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::hypervisor::kvm) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    registers: kvm_regs,
    special_registers: kvm_sregs,
    extended_state: kvm_xsave,
    extended_control: kvm_xcrs,
    debug_registers: kvm_debugregs,
    local_apic: kvm_lapic_state,
    model_specific_registers: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

const _: () = {
    assert!(size_of::<kvm_cpuid_entry2>() == 40);
    assert!(size_of::<kvm_mp_state>() == 4);
    assert!(size_of::<kvm_regs>() == 144);
    assert!(size_of::<kvm_sregs>() == 312);
    assert!(size_of::<kvm_xsave>() == 4096);
    assert!(size_of::<kvm_xcrs>() == 392);
    assert!(size_of::<kvm_debugregs>() == 128);
    assert!(size_of::<kvm_lapic_state>() == 1024);
    assert!(size_of::<kvm_msr_entry>() == 16);
    assert!(size_of::<kvm_vcpu_events>() == 64);
};

/// A vCPU that cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum StateError {
    /// KVM does not give something.
    #[error("the vCPU's {what} cannot be read")]
    Read {
        /// What.
        what: &'static str,
        /// KVM's answer.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// KVM does not take something.
    #[error("the vCPU's {what} cannot be set")]
    Write {
        /// What.
        what: &'static str,
        /// KVM's answer.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// KVM does not take a model specific register.
    #[error("model specific register {register:#x} cannot be set to {value:#x}")]
    Register {
        /// Its number.
        register: u32,
        /// What it should hold.
        value: u64,
    },
    /// A state that no vCPU has.
    #[error("{count} {what} are more than KVM takes")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        count: usize,
    },
}

/// The model specific registers that this host's KVM can save. Once per machine.
///
/// # Errors
/// When KVM does not list them.
pub(in crate::hypervisor::kvm) fn saved_registers(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}

/// Takes a stopped vCPU's state. `registers` are [`saved_registers`]'.
///
/// An exit that was not completed (a read from a port or a register window) must have been: KVM keeps the
/// other half to itself.
///
/// # Errors
/// [`StateError::Read`].
pub(in crate::hypervisor::kvm) fn save(vcpu: &VcpuFd, registers: &[u32]) -> Result<VcpuState, StateError> {
    let read = |what| move |cause| StateError::Read { what, cause };
    Ok(VcpuState {
        // First: reading it settles a start-up IPI that has arrived, which changes the others
        // (KVM api.rst 4.38).
        mp_state: vcpu.get_mp_state().map_err(read("run state"))?,
        cpuid: vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(read("CPUID"))?
            .as_slice()
            .to_vec(),
        tsc_khz: vcpu.get_tsc_khz().map_err(read("time-stamp frequency"))?,
        registers: vcpu.get_regs().map_err(read("registers"))?,
        special_registers: vcpu.get_sregs().map_err(read("special registers"))?,
        extended_state: vcpu.get_xsave().map_err(read("extended state"))?,
        extended_control: vcpu.get_xcrs().map_err(read("extended control"))?,
        debug_registers: vcpu.get_debug_regs().map_err(read("debug registers"))?,
        local_apic: vcpu.get_lapic().map_err(read("local APIC"))?,
        model_specific_registers: read_registers(vcpu, registers)?,
        // Last: reading them settles exceptions that are on their way.
        events: vcpu.get_vcpu_events().map_err(read("events"))?,
    })
}

/// All that can be read: KVM stops at one that this vCPU does not have, which is then left out.
fn read_registers(vcpu: &VcpuFd, registers: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let what = "model specific registers";
    let mut found = Vec::with_capacity(registers.len());
    let mut rest = registers;
    while !rest.is_empty() {
        let asked: Vec<kvm_msr_entry> = rest.iter().map(|index| entry(*index, 0)).collect();
        let count = asked.len();
        let mut asked = Msrs::from_entries(&asked).map_err(|_| StateError::TooMany { what, count })?;
        let read = vcpu
            .get_msrs(&mut asked)
            .map_err(|cause| StateError::Read { what, cause })?;
        found.extend_from_slice(asked.as_slice().get(..read).unwrap_or_default());
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    found.sort_by_key(|register: &kvm_msr_entry| register.index == TSC_DEADLINE);
    Ok(found)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}

/// Makes a new vCPU of a VM with interrupt controllers what another one was.
///
/// # Errors
/// [`StateError`]; the vCPU is then of no use.
pub(in crate::hypervisor::kvm) fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let write = |what| move |cause| StateError::Write { what, cause };
    let count = state.cpuid.len();
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| StateError::TooMany {
        what: "CPUID leaves",
        count,
    })?;
    // Everything else is checked against what the processor can.
    vcpu.set_cpuid2(&cpuid).map_err(write("CPUID"))?;
    restore_frequency(vcpu, state.tsc_khz)?;
    vcpu.set_mp_state(state.mp_state).map_err(write("run state"))?;
    vcpu.set_regs(&state.registers).map_err(write("registers"))?;
    // With the APIC's base and mode, before the APIC itself.
    vcpu.set_sregs(&state.special_registers)
        .map_err(write("special registers"))?;
    restore_extended(vcpu, &state.extended_state)?;
    vcpu.set_xcrs(&state.extended_control)
        .map_err(write("extended control"))?;
    vcpu.set_debug_regs(&state.debug_registers)
        .map_err(write("debug registers"))?;
    vcpu.set_lapic(&state.local_apic).map_err(write("local APIC"))?;
    write_registers(vcpu, &state.model_specific_registers)?;
    vcpu.set_vcpu_events(&state.events).map_err(write("events"))
}

/// A host whose counter runs at another frequency scales it, or says that it cannot.
fn restore_frequency(vcpu: &VcpuFd, khz: u32) -> Result<(), StateError> {
    let what = "time-stamp frequency";
    let here = vcpu
        .get_tsc_khz()
        .map_err(|cause| StateError::Read { what, cause })?;
    if here == khz {
        return Ok(());
    }
    vcpu.set_tsc_khz(khz)
        .map_err(|cause| StateError::Write { what, cause })
}

fn restore_extended(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<(), StateError> {
    let what = "extended state";
    // KVM refuses this where the vCPU's state is larger than `kvm_xsave` (KVM api.rst 4.42).
    vcpu.get_xsave()
        .map_err(|cause| StateError::Read { what, cause })?;
    // SAFETY: KVM reads as much as this vCPU's state has, which is at most the 4096 bytes of `state`: the call
    // above succeeded, and features are not added between the two.
    let outcome = unsafe { vcpu.set_xsave(state) };
    outcome.map_err(|cause| StateError::Write { what, cause })
}

fn write_registers(vcpu: &VcpuFd, registers: &[kvm_msr_entry]) -> Result<(), StateError> {
    let what = "model specific registers";
    let count = registers.len();
    let list = Msrs::from_entries(registers).map_err(|_| StateError::TooMany { what, count })?;
    let written = vcpu
        .set_msrs(&list)
        .map_err(|cause| StateError::Write { what, cause })?;
    match registers.get(written) {
        Some(refused) => Err(StateError::Register {
            register: refused.index,
            value: refused.data,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot::Entry;
    use super::super::processor::{self, tests::with_vcpu};
    use super::*;

    #[test]
    fn a_vcpu_is_the_same_after_a_journey_through_serde() {
        let json = with_vcpu(|kvm, vcpu| {
            let supported = processor::supported(kvm).unwrap();
            let entry = Entry::Long {
                rip: 0x100_0200,
                zero_page: 0x7000,
            };
            processor::prepare_vcpu(vcpu, 0, 2, &supported, Some(&entry)).unwrap();
            let state = save(vcpu, &saved_registers(kvm).unwrap()).unwrap();
            serde_json::to_value(state).unwrap()
        });
        let Some(json) = json else { return };
        with_vcpu(|kvm, vcpu| {
            let state: VcpuState = serde_json::from_value(json.clone()).unwrap();
            restore(vcpu, &state).unwrap();
            let again = save(vcpu, &saved_registers(kvm).unwrap()).unwrap();
            assert_eq!(again.registers, state.registers);
            assert_eq!(again.special_registers, state.special_registers);
            assert_eq!(again.cpuid, state.cpuid);
            assert_eq!(again.local_apic, state.local_apic);
            assert_eq!(again.extended_control, state.extended_control);
            assert_eq!(again.mp_state, state.mp_state);
        });
    }
}
