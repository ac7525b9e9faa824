//! What a guest's processors say of themselves. Pure: a function of what KVM supports.
//!
//! ```text
//!  KVM_GET_SUPPORTED_CPUID ──► without what needs a host we are not ──► with this vCPU's place ──► guest
//! ```
//!
//! No feature is invented: bits are only ever cleared, but for two that KVM leaves to its user, the
//! hypervisor bit and the TSC deadline timer.
//! Owns the choice and the topology: one package, one thread per core.
//! It must not know vCPUs.
//!
//! Leaves 0x15 and 0x40000010 are left as KVM gives them: a guest learns the counter's frequency from
//! kvm-clock, which Linux takes before any calibration; what an integer ratio can say in leaf 0x15 is less
//! exact, and 0x40000010 is read on other hypervisors only.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const VMX: u32 = 1 << 5;
const PERFMON_CAPABILITIES: u32 = 1 << 15;
/// Leaf 1 EDX.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 7 EBX and ECX.
const SGX: u32 = 1 << 2;
const SGX_LAUNCH: u32 = 1 << 30;
/// Leaf 0x80000001 ECX.
const SVM: u32 = 1 << 2;
const AMD_PERFORMANCE_COUNTERS: u32 = 1 << 23;

/// The paravirtual features that KVM serves alone (Linux Documentation/virt/kvm/x86/cpuid.rst):
/// clock (0, 3, 24), no I/O delay (1), steal time (5), end of interrupt (6), spinlocks (7), TLB flush (9),
/// IPIs (11), halt polling (12), yield (13).
/// Not asynchronous page faults (4, 10, 14): one in flight cannot be taken into a snapshot.
/// Not extended destination ids (15), memory attributes (16) and migration (17): those need us.
const PARAVIRTUAL: u32 =
    1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 24;

/// A vCPU's place in the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its number from 0, which is its APIC id.
    pub(super) index: u8,
    /// How many there are, at least one.
    pub(super) count: u8,
}

impl Place {
    /// How many bits of an APIC id number the cores.
    fn bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    /// The highest number that fits these bits: what "maximum addressable ids, less one" means.
    fn last_id(self) -> u32 {
        (1 << self.bits()) - 1
    }
}

/// What any of the machine's processors can say.
#[derive(Debug)]
pub(in crate::hypervisor::kvm) struct Supported(CpuId);

/// Clears what a sandbox does not get, and sets what KVM leaves to us.
///
/// Nested virtualization and SGX are out: each is a large surface in the host's kernel. So are performance
/// counters: they are a side channel, and dozens of exits while booting.
pub(super) fn restrict(mut supported: CpuId, tsc_deadline: bool) -> Supported {
    for entry in supported.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx &= !(VMX | PERFMON_CAPABILITIES);
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            7 if entry.index == 0 => {
                entry.ebx &= !SGX;
                entry.ecx &= !SGX_LAUNCH;
            }
            // Performance counters, SGX, and SVM's own features.
            0xa | 0x12 | 0x8000_000a => clear(entry),
            0x4000_0001 => entry.eax &= PARAVIRTUAL,
            0x8000_0001 => entry.ecx &= !(SVM | AMD_PERFORMANCE_COUNTERS),
            _ => {}
        }
    }
    Supported(supported)
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// The table for one vCPU: what it supports, with its place in the leaves that tell it.
pub(super) fn for_vcpu(supported: &Supported, place: Place) -> Vec<kvm_cpuid_entry2> {
    let mut table = supported.0.as_slice().to_vec();
    let amd = is_amd(&table);
    for entry in &mut table {
        match entry.function {
            1 => basic(entry, place),
            4 => caches(entry, place, true),
            0x8000_001d => caches(entry, place, false),
            0x8000_0001 if amd && place.count == 1 => entry.ecx &= !AMD_LEGACY_CORES,
            0x8000_0008 if amd => cores(entry, place),
            0x8000_001e => extended_apic_id(entry, place),
            _ => {}
        }
    }
    for leaf in [0xb, 0x1f] {
        if table.iter().any(|entry| entry.function == leaf) {
            table.retain(|entry| entry.function != leaf);
            table.extend(levels(leaf, place));
        }
    }
    table
}

/// Leaf 0x80000001 ECX: leaf 1 counts cores rather than threads.
const AMD_LEGACY_CORES: u32 = 1 << 1;

/// "AuthenticAMD" and "HygonGenuine", whose leaf 0x80000008 ECX counts cores.
fn is_amd(table: &[kvm_cpuid_entry2]) -> bool {
    let vendor = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    table
        .iter()
        .any(|entry| entry.function == 0 && [vendor(b"Auth"), vendor(b"Hygo")].contains(&entry.ebx))
}

/// Leaf 1: APIC id and number of ids in EBX (Intel SDM 2A, CPUID; AMD APM 3 §E.3.2).
fn basic(entry: &mut kvm_cpuid_entry2, place: Place) {
    let ids = place.last_id() + 1;
    entry.ebx = entry.ebx & 0xffff | ids << 16 | u32::from(place.index) << 24;
    if place.count > 1 {
        entry.edx |= HYPER_THREADING;
    } else {
        entry.edx &= !HYPER_THREADING;
    }
}

/// Leaf 4, and AMD's 0x8000001D: who shares a cache. The first two levels are each core's own, the third is
/// everybody's. Bits 26 to 31 of Intel's count the cores.
fn caches(entry: &mut kvm_cpuid_entry2, place: Place, intel: bool) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0b111;
    let sharing = if level < 3 { 0 } else { place.last_id() };
    entry.eax = entry.eax & 0x3fff | sharing << 14;
    if intel {
        entry.eax |= place.last_id() << 26;
    }
}

/// AMD's leaf 0x80000008 ECX: number of cores, and bits of their ids (AMD APM 3 §E.4.7).
fn cores(entry: &mut kvm_cpuid_entry2, place: Place) {
    entry.ecx = entry.ecx & !0xf0ff | (u32::from(place.count) - 1) | place.bits() << 12;
}

/// AMD's leaf 0x8000001E: one thread per core, one node (AMD APM 3 §E.4.17).
fn extended_apic_id(entry: &mut kvm_cpuid_entry2, place: Place) {
    entry.eax = place.index.into();
    entry.ebx = place.index.into();
    entry.ecx = 0;
}

/// Leaves 0xB and 0x1F: threads, cores, end (Intel SDM 2A, CPUID).
fn levels(leaf: u32, place: Place) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: place.index.into(),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 1, 0, 1),
        level(1, 2, place.bits(), place.count.into()),
        level(2, 0, 0, 0),
    ]
}
