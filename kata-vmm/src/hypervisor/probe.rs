//! What this host can run.
//!
//! Owns the paths and variables that are looked at; each backend's own module does the looking.
//! It must not decide anything: that is [`select`](super::select).

use std::path::Path;
use std::{env, fs};

use super::{Capabilities, kvm, qemu};

/// Looks at the host: opens `/dev/kvm` and makes a VM that it drops at once, and looks for QEMU in the
/// variable `KATA_QEMU`, else on `PATH`.
///
/// Takes about a millisecond, starts no thread and no process, and leaves nothing behind. Nothing is
/// cached: a host whose `/dev/kvm` was just made usable is seen as it is now.
#[must_use]
pub fn probe() -> Capabilities {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Capabilities {
        kvm: kvm::probe(Path::new("/dev/kvm"), &cpuinfo),
        qemu: qemu::find(env::var_os("KATA_QEMU"), env::var_os("PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::KvmUnusable;

    #[test]
    fn a_probe_leaves_no_descriptor_and_no_thread() {
        let count =
            || ["/proc/self/fd", "/proc/self/task"].map(|directory| fs::read_dir(directory).unwrap().count());
        // Other tests of this process run beside this one, so growth is looked for over many rounds.
        let before = count();
        for _ in 0..100 {
            drop(probe());
        }
        let after = count();
        assert!(after[0] < before[0] + 50, "descriptors: {before:?} {after:?}");
        assert!(after[1] < before[1] + 50, "threads: {before:?} {after:?}");
    }

    #[test]
    fn a_host_without_vmx_or_svm_never_claims_kvm() {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        let hardware = flags.split(' ').any(|flag| flag == "vmx" || flag == "svm");
        let kvm = probe().kvm;
        if hardware {
            assert_ne!(kvm, Err(KvmUnusable::NoHardwareVirtualization));
        } else {
            assert!(kvm.is_err());
        }
    }
}
