//! KVM: the only place that makes KVM calls.
//!
//! So far it only finds out whether stock guest kernels can run on `/dev/kvm`.
//! It must not know machines or devices.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Kvm, VmFd};

use super::KvmUnusable;

/// The version that every kernel since 2.6.22 answers (KVM api.rst 4.1).
const API_VERSION: i32 = 12;

/// How often an interrupted VM creation is tried again.
const ATTEMPTS: u32 = 5;

/// Opens the device, creates a VM and drops it again, and reads the processor's flags.
pub(super) fn probe(device: &Path, cpuinfo: &str) -> Result<(), KvmUnusable> {
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| KvmUnusable::Missing)?;
    let kvm = Kvm::new_with_path(path).map_err(classify)?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmUnusable::Broken {
            cause: format!("it speaks API version {version}, not {API_VERSION}"),
        });
    }
    create_vm(&kvm).map_err(classify)?;
    if has_hardware_virtualization(cpuinfo) {
        Ok(())
    } else {
        Err(KvmUnusable::NoHardwareVirtualization)
    }
}

/// Creating a VM is interrupted by any signal that the calling thread receives.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    let mut outcome = kvm.create_vm();
    for _ in 1..ATTEMPTS {
        match &outcome {
            Err(cause) if cause.errno() == libc::EINTR => outcome = kvm.create_vm(),
            _ => break,
        }
    }
    outcome
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
