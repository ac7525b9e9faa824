//! Everything that a VM is beside its memory and its vCPUs, taken from KVM and given back: the interrupt
//! controllers that they share, and the clock.
//!
//! ```text
//!  VM (all vCPUs stopped) ── save ──► VmState ── restore ──► a new VM with interrupt controllers
//! ```
//!
//! Owns the set of it. There is no timer chip: a machine has none. The sizes that a snapshot holds are asserted when
//! this is compiled, as with a vCPU's.
//! It must not know files, nor vCPUs.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// KVM's chips, in the order in which they are kept (KVM api.rst 4.26 `KVM_GET_IRQCHIP`).
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// See the module.
#[derive(Serialize, Deserialize)]
pub(in crate::hypervisor::kvm) struct VmState {
    chips: [kvm_irqchip; CHIPS.len()],
    clock: kvm_clock_data,
}

const _: () = {
    assert!(size_of::<kvm_irqchip>() == 520);
    assert!(size_of::<kvm_clock_data>() == 48);
    assert!(size_of::<VmState>() == 3 * 520 + 48);
};

/// A VM that cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum VmStateError {
    /// KVM does not give something.
    #[error("the VM's {what} cannot be read")]
    Read {
        /// What.
        what: &'static str,
        /// KVM's answer.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// KVM does not take something.
    #[error("the VM's {what} cannot be set")]
    Write {
        /// What.
        what: &'static str,
        /// KVM's answer.
        #[source]
        cause: kvm_ioctls::Error,
    },
}

/// Takes it from a VM whose vCPUs are stopped.
///
/// # Errors
/// [`VmStateError::Read`].
pub(in crate::hypervisor::kvm) fn save(vm: &VmFd) -> Result<VmState, VmStateError> {
    let read = |what| move |cause| VmStateError::Read { what, cause };
    let mut chips = CHIPS.map(|chip_id| kvm_irqchip {
        chip_id,
        ..kvm_irqchip::default()
    });
    for chip in &mut chips {
        vm.get_irqchip(chip).map_err(read("interrupt controller"))?;
    }
    let clock = vm.get_clock().map_err(read("clock"))?;
    Ok(VmState { chips, clock })
}

/// Gives it to a new VM that has interrupt controllers. Its vCPUs come after it.
///
/// The clock goes on where it stood: a guest does not see how long it was away, until it is told.
///
/// # Errors
/// [`VmStateError::Write`]; the VM is then of no use.
pub(in crate::hypervisor::kvm) fn restore(vm: &VmFd, state: &VmState) -> Result<(), VmStateError> {
    let write = |what| move |cause| VmStateError::Write { what, cause };
    for chip in &state.chips {
        vm.set_irqchip(chip).map_err(write("interrupt controller"))?;
    }
    // The flags that reading it sets are answers, which KVM does not take (KVM api.rst 4.30 `KVM_SET_CLOCK`).
    let clock = kvm_clock_data {
        clock: state.clock.clock,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(write("clock"))
}

#[cfg(test)]
mod tests {
    use super::super::processor::tests::with_vm;
    use super::*;

    /// Where the redirection of a pin is in a kept IO-APIC: its chip's number, its base, its registers, 8 bytes for each
    /// pin before it.
    const fn redirection(pin: usize) -> usize {
        8 + 24 + 8 * pin
    }

    #[test]
    fn controllers_and_clock_are_the_same_after_a_journey_through_serde() {
        let json = with_vm(|vm| {
            let mut json = serde_json::to_value(save(vm).unwrap()).unwrap();
            // Of the first pin that a device gets: vector 0x31, edge-triggered, not masked (82093AA §3.2.4).
            for (at, byte) in (redirection(5)..).zip([0x31, 0, 0, 0, 0, 0, 0, 0]) {
                json["chips"][2][at] = byte.into();
            }
            restore(vm, &serde_json::from_value(json.clone()).unwrap()).unwrap();
            let changed = serde_json::to_value(save(vm).unwrap()).unwrap();
            assert_eq!(changed["chips"], json["chips"]);
            changed
        });
        let Some(json) = json else { return };
        with_vm(|vm| {
            let state: VmState = serde_json::from_value(json.clone()).unwrap();
            let fresh = save(vm).unwrap();
            assert_ne!(serde_json::to_value(&fresh).unwrap()["chips"], json["chips"]);
            restore(vm, &state).unwrap();
            let again = save(vm).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap()["chips"], json["chips"]);
            assert!(again.clock.clock >= state.clock.clock);
        });
    }

    #[test]
    fn a_clock_goes_on_where_it_stood() {
        const HOUR: u64 = 3_600_000_000_000;
        with_vm(|vm| {
            let mut state = save(vm).unwrap();
            state.clock.clock = HOUR;
            restore(vm, &state).unwrap();
            let now = save(vm).unwrap().clock.clock;
            assert!((HOUR..2 * HOUR).contains(&now), "{now}");
        });
    }
}
