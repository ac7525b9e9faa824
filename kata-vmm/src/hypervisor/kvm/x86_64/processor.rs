//! A vCPU before its first instruction.
//!
//! Owns the KVM calls that give it its identity, its model specific registers, its interrupt pins and, for the
//! boot processor, its entry. The others wait for the boot processor's start-up IPI, as KVM made them.
//! The FPU needs none: a new vCPU's is as FNINIT leaves it (and `KVM_SET_FPU` does not take MXCSR).
//! It must not know threads or exits.

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_lapic_state,
    kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::boot::Entry;
pub(in crate::hypervisor::kvm) use super::cpuid::Supported;
use super::cpuid::{self, Place};
use super::entry;

/// `IA32_MISC_ENABLE` (Intel SDM 4, MSR 0x1a0): fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE` (Intel SDM 3A §12.11.2.1): enabled, write-back. There is no firmware to set it, and a
/// guest that believes it would treat all memory as uncached.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Local APIC registers of the two interrupt pins (Intel SDM 3A §11.5.1), and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MASK: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_EXTINT: u32 = 0b111 << 8;

/// A vCPU that cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum ProcessorError {
    /// KVM refused.
    #[error("KVM refuses the {what} of vCPU {index}")]
    Kvm {
        /// What.
        what: &'static str,
        /// The vCPU's number.
        index: u8,
        /// KVM's answer.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// KVM refused a model specific register.
    #[error("KVM refuses model specific register {register:#x} of vCPU {index}")]
    Register {
        /// Its number.
        register: u32,
        /// The vCPU's number.
        index: u8,
    },
    /// More leaves than KVM takes.
    #[error("CPUID has {entries} leaves; KVM takes {KVM_MAX_CPUID_ENTRIES}")]
    Cpuid {
        /// How many.
        entries: usize,
    },
}

/// What processors can say on this host: KVM's table without what a sandbox does not get. Once per machine.
///
/// # Errors
/// When KVM does not give its table.
pub(in crate::hypervisor::kvm) fn supported(kvm: &Kvm) -> Result<Supported, kvm_ioctls::Error> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // It depends on the in-kernel APIC, so KVM does not list it (KVM api.rst 4.46).
    Ok(cpuid::restrict(
        supported,
        kvm.check_extension(Cap::TscDeadlineTimer),
    ))
}

/// How many bits guest-physical addresses have (Intel SDM 2A, CPUID leaf 0x80000008 EAX); 36 where no leaf
/// says it.
pub(in crate::hypervisor::kvm) fn address_bits(supported: &Supported) -> u32 {
    supported.leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff)
}

/// A machine without performance counters, whatever CPUID says: AMD's first four are not in it (KVM api.rst
/// 8.28 `KVM_CAP_PMU_CAPABILITY`). A KVM that cannot do it leaves them.
///
/// # Errors
/// When KVM says that it can and does not.
pub(in crate::hypervisor::kvm) fn without_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    /// `KVM_PMU_CAP_DISABLE` (linux/kvm.h).
    const DISABLE: u64 = 1;
    if u64::try_from(vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into())).unwrap_or(0) & DISABLE == 0 {
        return Ok(());
    }
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [DISABLE, 0, 0, 0],
        ..kvm_enable_cap::default()
    })
}

/// Gives vCPU `index` of `count` everything it has before its first instruction. `supported` is
/// [`supported`]'s; `entry` is for the boot processor alone.
///
/// The in-kernel interrupt controllers exist.
///
/// # Errors
/// [`ProcessorError`] with what KVM refused.
pub(in crate::hypervisor::kvm) fn prepare_vcpu(
    vcpu: &VcpuFd,
    index: u8,
    count: u8,
    supported: &Supported,
    entry: Option<&Entry>,
) -> Result<(), ProcessorError> {
    let kvm = |what| move |cause| ProcessorError::Kvm { what, index, cause };
    let table = cpuid::for_vcpu(supported, Place { index, count });
    let table = CpuId::from_entries(&table).map_err(|_| ProcessorError::Cpuid { entries: table.len() })?;
    vcpu.set_cpuid2(&table).map_err(kvm("CPUID"))?;
    set_registers(vcpu, index)?;
    if let Some(entry) = entry {
        let reset = vcpu.get_sregs().map_err(kvm("special registers"))?;
        vcpu.set_sregs(&entry::special(entry, &reset))
            .map_err(kvm("special registers"))?;
        vcpu.set_regs(&entry::general(entry)).map_err(kvm("registers"))?;
    }
    let mut apic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    connect_pins(&mut apic);
    vcpu.set_lapic(&apic).map_err(kvm("local APIC"))
}

/// The model specific registers whose value after reset is not what firmware leaves. Those that are zero
/// then are zero already; the time-stamp counters are left alone, so that KVM keeps them in step.
fn set_registers(vcpu: &VcpuFd, index: u8) -> Result<(), ProcessorError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let what = "model specific registers";
    let registers =
        Msrs::from_entries(&entries).map_err(|_| ProcessorError::Register { register: 0, index })?;
    let written = vcpu
        .set_msrs(&registers)
        .map_err(|cause| ProcessorError::Kvm { what, index, cause })?;
    // KVM stops at the first that it refuses.
    match entries.get(written) {
        Some(refused) => Err(ProcessorError::Register {
            register: refused.index,
            index,
        }),
        None => Ok(()),
    }
}

/// LINT0 takes the legacy controller's interrupts and LINT1 the NMI, as the tables say (MP 1.4 §4.3.4).
fn connect_pins(apic: &mut kvm_lapic_state) {
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        let value = apic_register(apic, offset) & !DELIVERY_MASK | mode;
        for (register, byte) in apic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
            *register = byte.cast_signed();
        }
    }
}

fn apic_register(apic: &kvm_lapic_state, offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| {
        apic.regs[offset + byte].cast_unsigned()
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a test on a new VM with interrupt controllers; prints why where there is no KVM.
    pub(in super::super) fn with_vm<T>(test: impl FnOnce(&VmFd) -> T) -> Option<T> {
        let (_kvm, vm) = vm()?;
        Some(test(&vm))
    }

    /// The same with a vCPU.
    pub(in super::super) fn with_vcpu<T>(test: impl FnOnce(&Kvm, &VcpuFd) -> T) -> Option<T> {
        let (kvm, vm) = vm()?;
        let vcpu = vm.create_vcpu(0).unwrap();
        Some(test(&kvm, &vcpu))
    }

    fn vm() -> Option<(Kvm, VmFd)> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(cause) => {
                assert!(std::env::var_os("CI").is_none(), "SKIPPED: /dev/kvm: {cause}");
                println!("SKIPPED a processor's test: /dev/kvm: {cause}");
                return None;
            }
        };
        let vm: VmFd = crate::hypervisor::kvm::create_vm(&kvm).unwrap();
        vm.create_irq_chip().unwrap();
        Some((kvm, vm))
    }

    #[test]
    fn the_boot_processor_is_ready_to_enter_the_kernel() {
        with_vcpu(|kvm, vcpu| {
            let supported = supported(kvm).unwrap();
            let entry = Entry::Pvh {
                rip: 0x100_0a30,
                start_info: 0x7000,
            };
            prepare_vcpu(vcpu, 0, 1, &supported, Some(&entry)).unwrap();
            let registers = vcpu.get_regs().unwrap();
            assert_eq!(
                (registers.rip, registers.rbx, registers.rflags),
                (0x100_0a30, 0x7000, 2)
            );
            let special = vcpu.get_sregs().unwrap();
            assert_eq!(
                (special.cr0 & 0x8000_0001, special.cs.limit, special.cs.db),
                (1, u32::MAX, 1)
            );
            // FCW and MXCSR in the FXSAVE area (Intel SDM 1 table 10-2): every exception masked.
            let fpu = vcpu.get_xsave().unwrap().region;
            assert_eq!((fpu[0] & 0xffff, fpu[6]), (0x37f, 0x1f80));
            let apic = vcpu.get_lapic().unwrap();
            let mode = |register| apic_register(&apic, register) & DELIVERY_MASK;
            assert_eq!((mode(LVT_LINT0), mode(LVT_LINT1)), (0x700, 0x400));
            let mut registers = Msrs::from_entries(&[kvm_msr_entry {
                index: 0x2ff,
                ..kvm_msr_entry::default()
            }])
            .unwrap();
            assert_eq!(vcpu.get_msrs(&mut registers).unwrap(), 1);
            assert_eq!(registers.as_slice()[0].data, 0x806);
        });
    }

    #[test]
    fn the_others_wait_where_kvm_made_them() {
        with_vcpu(|kvm, vcpu| {
            let before = vcpu.get_regs().unwrap();
            prepare_vcpu(vcpu, 0, 4, &supported(kvm).unwrap(), None).unwrap();
            assert_eq!(vcpu.get_regs().unwrap(), before);
        });
    }
}
