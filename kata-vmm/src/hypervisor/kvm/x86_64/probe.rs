//! Whether stock guest kernels can run on `/dev/kvm`: a guest of three instructions decides.
//!
//! KVM's pagetable backend interprets what a guest does at privilege level 0, and its interpreter lacks
//! instructions that every kernel uses. A module's name or a processor's flag only tell what should be so;
//! one of those instructions, run in 64-bit mode, tells what is so.
//! It must not know machines.
#![expect(unsafe_code, reason = "the guest's page is given to KVM by its address")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::hypervisor::KvmUnusable;
use crate::hypervisor::kvm::create_vm;

/// The version that every kernel since 2.6.22 answers (KVM api.rst 4.1).
const API_VERSION: i32 = 12;

/// How often a run that the host interrupts is tried again.
const RUNS: u32 = 100;

/// The guest's memory: page tables, code and an operand.
const MEMORY_BYTES: usize = 0x6000;
const PML4: u64 = 0x1000;
const PAGE_DIRECTORY_POINTERS: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
const OPERAND: u64 = 0x5000;

/// Present and writable (Intel SDM 3A §4.5).
const PAGE: u64 = 0b11;
/// The same, of 2 MiB.
const LARGE_PAGE: u64 = PAGE | 1 << 7;

/// The port by which the guest says that it came through.
const PORT: u16 = 0x10;

/// ```text
///   lock cmpxchg16b [rdi]
///   out  PORT, al
///   hlt
/// ```
const PROGRAM: [u8; 8] = [0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xe6, 0x10, 0xf4];

/// How the guest ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It came through.
    Runs,
    /// KVM had to interpret it and could not.
    Interpreted,
    /// Something else.
    Other(String),
}

/// Opens the device, runs the guest, and drops both.
pub(in crate::hypervisor) fn probe(device: &Path, cpuinfo: &str) -> Result<(), KvmUnusable> {
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| KvmUnusable::Missing)?;
    let kvm = Kvm::new_with_path(path).map_err(classify)?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmUnusable::Broken {
            cause: format!("it speaks API version {version}, not {API_VERSION}"),
        });
    }
    let memory = memory().map_err(|cause| KvmUnusable::Broken { cause })?;
    let vm = create_vm(&kvm).map_err(classify)?;
    let verdict = guest(&kvm, &vm, &memory)
        .and_then(|mut vcpu| run(&mut vcpu))
        .map_err(classify)?;
    judge(verdict, has_hardware_virtualization(cpuinfo))
}

fn judge(verdict: Verdict, hardware: bool) -> Result<(), KvmUnusable> {
    match verdict {
        Verdict::Runs => Ok(()),
        Verdict::Interpreted if !hardware => Err(KvmUnusable::NoHardwareVirtualization),
        Verdict::Interpreted => Err(KvmUnusable::Broken {
            cause: "it cannot run the instruction cmpxchg16b in a guest".to_owned(),
        }),
        Verdict::Other(exit) => Err(KvmUnusable::Broken {
            cause: format!("a guest of three instructions ended with {exit}"),
        }),
    }
}

fn memory() -> Result<GuestMemoryMmap, String> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|cause| cause.to_string())?;
    for (address, entry) in [
        (PML4, PAGE_DIRECTORY_POINTERS | PAGE),
        (PAGE_DIRECTORY_POINTERS, PAGE_DIRECTORY | PAGE),
        (PAGE_DIRECTORY, LARGE_PAGE),
    ] {
        memory
            .write_obj(entry, GuestAddress(address))
            .map_err(|cause| cause.to_string())?;
    }
    memory
        .write_slice(&PROGRAM, GuestAddress(CODE))
        .map_err(|cause| cause.to_string())?;
    Ok(memory)
}

/// A processor in 64-bit mode at the first instruction.
fn guest(kvm: &Kvm, vm: &VmFd, memory: &GuestMemoryMmap) -> Result<VcpuFd, kvm_ioctls::Error> {
    let host_address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|_| kvm_ioctls::Error::new(libc::EFAULT))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: host_address.addr() as u64,
    };
    // SAFETY: `memory` is mapped until the caller drops it, after the VM.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    vcpu.set_sregs(&long_mode(vcpu.get_sregs()?))?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rdi: OPERAND,
        rflags: 2,
        ..kvm_regs::default()
    })?;
    Ok(vcpu)
}

/// Intel SDM 3A §2.5 and §3.4.5: protection, paging, long mode, flat segments.
fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    const CR0_PE: u64 = 1;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    sregs
}

fn run(vcpu: &mut VcpuFd) -> Result<Verdict, kvm_ioctls::Error> {
    for _ in 0..RUNS {
        return Ok(match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, _)) => Verdict::Runs,
            Ok(VcpuExit::InternalError) => Verdict::Interpreted,
            Ok(exit) => Verdict::Other(format!("{exit:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN | libc::ENOMEM) => continue,
            Err(error) => return Err(error),
        });
    }
    Ok(Verdict::Other(format!("{RUNS} interruptions")))
}

fn classify(cause: kvm_ioctls::Error) -> KvmUnusable {
    match cause.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmUnusable::Missing,
        libc::EACCES | libc::EPERM => KvmUnusable::Permission,
        _ => KvmUnusable::Broken {
            cause: cause.to_string(),
        },
    }
}

/// Whether `/proc/cpuinfo` lists Intel's `vmx` or AMD's `svm` (proc(5), field `flags`).
fn has_hardware_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(field, _)| field.trim() == "flags")
        .any(|(_, flags)| {
            flags
                .split_ascii_whitespace()
                .any(|flag| matches!(flag, "vmx" | "svm"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        for (cpuinfo, expected) in [
            ("flags\t\t: fpu vmx sse\n", true),
            ("processor\t: 0\nflags\t\t: fpu svm\n", true),
            ("flags\t\t: fpu svm_lock avmx\n", false),
            ("bugs\t\t: vmx svm\nvmx flags\t: vnmi svm\n", false),
            ("", false),
        ] {
            assert_eq!(has_hardware_virtualization(cpuinfo), expected, "{cpuinfo:?}");
        }
    }

    #[test]
    fn the_guest_decides_and_the_flags_only_name_the_reason() {
        let interpreted = || Verdict::Interpreted;
        assert_eq!(judge(Verdict::Runs, false), Ok(()));
        assert_eq!(
            judge(interpreted(), false),
            Err(KvmUnusable::NoHardwareVirtualization)
        );
        assert!(matches!(
            judge(interpreted(), true),
            Err(KvmUnusable::Broken { .. })
        ));
        let shutdown = judge(Verdict::Other("Shutdown".to_owned()), true).unwrap_err();
        assert_eq!(
            shutdown.to_string(),
            "/dev/kvm does not work: a guest of three instructions ended with Shutdown"
        );
    }

    #[test]
    fn a_missing_device_and_a_foreign_one_are_told_apart() {
        assert_eq!(
            probe(Path::new("/nonexistent/kvm"), ""),
            Err(KvmUnusable::Missing)
        );
        // Opens, and answers no KVM call.
        let answer = probe(Path::new("/dev/null"), "flags : vmx");
        assert!(matches!(answer, Err(KvmUnusable::Broken { .. })), "{answer:?}");
        assert_eq!(
            classify(kvm_ioctls::Error::new(libc::EACCES)),
            KvmUnusable::Permission
        );
    }
}
