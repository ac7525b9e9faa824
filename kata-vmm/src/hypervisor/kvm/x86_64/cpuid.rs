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

impl Supported {
    /// The first entry of a leaf.
    pub(super) fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.as_slice().iter().find(|entry| entry.function == function)
    }
}

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
            0xa | 0x12 | 0x8000_000a | 0x8000_0022 => clear(entry),
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

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (u32, u32, [u32; 4]);

    /// Leaves as a 16-core Ice Lake host's KVM gives them; the ones that are touched, and a few that are not.
    const INTEL: &[Row] = &[
        (0, 0, [0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        (1, 0, [0x606a6, 0x0510_0800, 0xf6fa_b223, 0x1f8b_fbff]),
        (4, 0, [0x7c00_4121, 0x02c0_003f, 0x3f, 0]),
        (4, 1, [0x7c00_4122, 0x01c0_003f, 0x3f, 0]),
        (4, 2, [0x7c00_4143, 0x04c0_003f, 0x3ff, 0]),
        (4, 3, [0x7c07_c163, 0x02c0_003f, 0xbfff, 4]),
        (4, 4, [0, 0, 0, 0]),
        (7, 0, [0, 0xf1bf_07ef, 0x4040_5f4e, 0xbc04_0412]),
        (0xa, 0, [0x0730_0802, 0, 0, 0x603]),
        (0xb, 0, [1, 2, 0x100, 5]),
        (0xb, 1, [5, 32, 0x201, 5]),
        (0x12, 0, [3, 1, 0, 0x241f]),
        (0x1f, 0, [1, 2, 0x100, 5]),
        (0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        (0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        (0x8000_0008, 0, [0x3039, 0, 0, 0]),
    ];

    /// As an EPYC Milan host's KVM gives them.
    const AMD: &[Row] = &[
        (0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        (1, 0, [0xa0_0f11, 0x0310_0800, 0xf6d8_3203, 0x178b_fbff]),
        (0xb, 0, [1, 2, 0x100, 3]),
        (0xb, 1, [4, 16, 0x201, 3]),
        (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        (0x8000_0001, 0, [0xa0_0f11, 0x4000_0000, 0x0040_03f7, 0x2fd3_fbff]),
        (0x8000_0008, 0, [0x3030, 0x111e_f657, 0x700f, 0]),
        (0x8000_000a, 0, [1, 0xf, 0, 0x1bc3_fcff]),
        (0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
        (0x8000_001d, 3, [0x3c163, 0x03c0_003f, 0x7fff, 1]),
        (0x8000_001e, 0, [3, 0x101, 0x300, 0]),
    ];

    fn supported(rows: &[Row]) -> Supported {
        let entries: Vec<kvm_cpuid_entry2> = rows
            .iter()
            .map(|&(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            })
            .collect();
        restrict(CpuId::from_entries(&entries).unwrap(), true)
    }

    fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let mut found = table
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index));
        let entry = found.next().unwrap();
        assert!(
            found.next().is_none(),
            "leaf {function:#x}.{index} is there twice"
        );
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    #[test]
    fn an_intel_table_for_the_third_of_four() {
        let table = for_vcpu(&supported(INTEL), Place { index: 2, count: 4 });
        // APIC id 2 of 4, CLFLUSH size kept; VMX and PDCM out, deadline timer and hypervisor in.
        let ecx = (0xf6fa_b223 & !(VMX | PERFMON_CAPABILITIES)) | TSC_DEADLINE | HYPERVISOR;
        assert_eq!(leaf(&table, 1, 0), [0x606a6, 0x0204_0800, ecx, 0x1f8b_fbff]);
        // Caches: own, own, own, shared by four ids; three in the count of cores.
        assert_eq!(leaf(&table, 4, 0)[0], 0x0c00_0121);
        assert_eq!(leaf(&table, 4, 2), [0x0c00_0143, 0x04c0_003f, 0x3ff, 0]);
        assert_eq!(leaf(&table, 4, 3), [0x0c00_c163, 0x02c0_003f, 0xbfff, 4]);
        assert_eq!(leaf(&table, 4, 4), [0; 4]);
        for function in [0xb, 0x1f] {
            assert_eq!(leaf(&table, function, 0), [0, 1, 0x100, 2]);
            assert_eq!(leaf(&table, function, 1), [2, 4, 0x201, 2]);
            assert_eq!(leaf(&table, function, 2), [0, 0, 2, 2]);
        }
        assert_eq!(leaf(&table, 7, 0)[1..3], [0xf1bf_07eb, 0x0040_5f4e]);
        assert_eq!((leaf(&table, 0xa, 0), leaf(&table, 0x12, 0)), ([0; 4], [0; 4]));
        assert_eq!(leaf(&table, 0x4000_0001, 0)[0], 0x0100_3aeb);
        // Cores are not counted where Intel has nothing.
        assert_eq!(leaf(&table, 0x8000_0008, 0), [0x3039, 0, 0, 0]);
    }

    #[test]
    fn an_amd_table_for_the_last_of_three() {
        let table = for_vcpu(&supported(AMD), Place { index: 2, count: 3 });
        // Three processors have two bits of ids.
        assert_eq!(leaf(&table, 1, 0)[1], 0x0204_0800);
        assert_eq!(leaf(&table, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(leaf(&table, 0x8000_0008, 0)[2], 0x2002);
        assert_eq!(leaf(&table, 0x8000_0001, 0)[2], 0x0040_03f7 & !SVM);
        assert_eq!(leaf(&table, 0x8000_000a, 0), [0; 4]);
        assert_eq!(leaf(&table, 0x8000_001d, 0)[0], 0x121);
        assert_eq!(leaf(&table, 0x8000_001d, 3)[0], 0xc163);
        assert_eq!(leaf(&table, 0x8000_001e, 0), [2, 2, 0, 0]);
        assert!(table.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn a_single_processor_has_no_siblings() {
        let table = for_vcpu(&supported(AMD), Place { index: 0, count: 1 });
        let basic = leaf(&table, 1, 0);
        assert_eq!((basic[1], basic[3] & HYPER_THREADING), (0x0001_0800, 0));
        assert_eq!(leaf(&table, 0xb, 1), [0, 1, 0x201, 0]);
        assert_eq!(leaf(&table, 0x8000_0008, 0)[2], 0);
        assert_eq!(leaf(&table, 0x8000_0001, 0)[2] & AMD_LEGACY_CORES, 0);
    }

    /// For every machine: no bit that KVM does not have but those that are a place, and ids that are apart.
    #[test]
    fn no_feature_is_invented() {
        for rows in [INTEL, AMD] {
            for count in 1..=32 {
                for index in 0..count {
                    let table = for_vcpu(&supported(rows), Place { index, count });
                    for &(function, sub, before) in rows {
                        let added = |word: usize| leaf(&table, function, sub)[word] & !before[word];
                        match function {
                            1 => assert_eq!(added(2) & !(TSC_DEADLINE | HYPERVISOR), 0),
                            7 | 0x8000_0001 | 0x4000_0001 => {
                                assert_eq!((added(1), added(2), added(3)), (0, 0, 0))
                            }
                            _ => {}
                        }
                    }
                    let width = leaf(&table, 0xb, 1)[0];
                    assert_eq!(leaf(&table, 0xb, 0)[3], u32::from(index));
                    assert!(u32::from(index) < 1 << width && u32::from(count) <= 1 << width);
                }
            }
        }
    }

    #[test]
    fn without_the_capability_there_is_no_deadline_timer() {
        let entry = kvm_cpuid_entry2 {
            function: 1,
            ..kvm_cpuid_entry2::default()
        };
        let Supported(table) = restrict(CpuId::from_entries(&[entry]).unwrap(), false);
        assert_eq!(table.as_slice()[0].ecx, HYPERVISOR);
    }
}
