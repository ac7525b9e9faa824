//! The one seam between machines and hypervisors.
//!
//! [`probe`] looks at the host, [`select`] decides (purely) which hypervisor runs a machine and says
//! why, and each backend below turns a [`Machine`](crate::machine::Machine) into a running one.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::machine::{Accelerator, Hypervisor};

mod channel;
mod child;
mod devices;
mod followers;
mod guest_memory;
mod inherit;
mod kvm;
mod limits;
mod probe;
mod process;
mod qemu;
mod shelf;
mod sockets;
mod tail;
mod vm;

pub use probe::probe;
pub(crate) use vm::{Occurrence, Refusal, Vm, launch};

/// Which hypervisor a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Backend {
    /// The best that this host can run; [`Selection::reason`] says why it is not a better one.
    #[default]
    Auto,
    /// Our own monitor, with hardware virtualization.
    Kvm,
    /// QEMU with hardware virtualization.
    QemuKvm,
    /// QEMU in software.
    QemuTcg,
    /// The agent as an ordinary process in namespaces: for tests of programs that embed the SDK.
    /// It is not a security boundary and is never selected by [`Auto`](Self::Auto).
    Process,
}

/// What this host can run, as [`probe`] found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether stock guest kernels run on `/dev/kvm`.
    pub kvm: Result<(), KvmUnusable>,
    /// QEMU's system emulator, if one was found.
    pub qemu: Result<Qemu, QemuUnusable>,
}

/// A QEMU that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The executable.
    pub binary: PathBuf,
}

/// Why `/dev/kvm` cannot run a stock guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum KvmUnusable {
    /// The device does not exist.
    #[error("/dev/kvm does not exist; load the kvm module or enable virtualization in the firmware")]
    Missing,
    /// The caller may not open it.
    #[error("/dev/kvm cannot be opened: permission denied; add the user to the group kvm")]
    Permission,
    /// It opened but did not answer as KVM does.
    #[error("/dev/kvm does not work: {cause}")]
    Broken {
        /// The operating system's answer.
        cause: String,
    },
    /// The processor has neither vmx nor svm: KVM's pagetable backend, which runs only kernels made for it.
    #[error("/dev/kvm is the pagetable backend (no vmx or svm), which cannot run stock guest kernels")]
    NoHardwareVirtualization,
}

impl KvmUnusable {
    /// The command that mends it, where there is one.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("sudo modprobe kvm_intel || sudo modprobe kvm_amd"),
            Self::Permission => Some("sudo usermod -aG kvm \"$USER\" && newgrp kvm"),
            Self::Broken { .. } | Self::NoHardwareVirtualization => None,
        }
    }
}

impl QemuUnusable {
    /// The command that mends it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "sudo apt-get install qemu-system-x86",
            Self::NotExecutable { .. } => "unset KATA_QEMU",
        }
    }
}

/// Why QEMU cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum QemuUnusable {
    /// No system emulator on PATH.
    #[error("{program} was not found on PATH; install it (Debian, Ubuntu: apt-get install qemu-system-x86)")]
    NotFound {
        /// The program that was looked for.
        program: String,
    },
    /// The variable `KATA_QEMU` names something else.
    #[error("KATA_QEMU names {}, which is not an executable file", .path.display())]
    NotExecutable {
        /// What it names.
        path: PathBuf,
    },
}

/// Why the selected hypervisor is not a better one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// The caller named this backend.
    Requested,
    /// Hardware virtualization is there and is used.
    BestAvailable,
    /// Software emulation, because KVM cannot be used.
    NoKvm(KvmUnusable),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("asked for by name"),
            Self::BestAvailable => f.write_str("the best this host can run"),
            Self::NoKvm(cause) => write!(f, "software emulation because {cause}"),
        }
    }
}

/// The decision: which hypervisor, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// What will run the machine.
    pub hypervisor: Hypervisor,
    /// Why it and not a better one.
    pub reason: Reason,
}

/// A backend that this host cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unsupported {
    /// It needs KVM.
    #[error("backend {backend:?} cannot run here")]
    Kvm {
        /// What was asked for.
        backend: Backend,
        /// What is wrong with KVM.
        #[source]
        cause: KvmUnusable,
    },
    /// It needs QEMU.
    #[error("backend {backend:?} cannot run here")]
    Qemu {
        /// What was asked for.
        backend: Backend,
        /// What is wrong with QEMU.
        #[source]
        cause: QemuUnusable,
    },
}

/// Decides which hypervisor runs a machine. Pure: all it knows of the host is in `capabilities`.
///
/// # Errors
/// When the named backend, or for [`Backend::Auto`] every backend, cannot run on this host.
pub fn select(backend: Backend, capabilities: &Capabilities) -> Result<Selection, Unsupported> {
    let own = |reason| match &capabilities.kvm {
        Ok(()) => Ok(Selection {
            hypervisor: Hypervisor::Kvm,
            reason,
        }),
        Err(cause) => Err(Unsupported::Kvm {
            backend,
            cause: cause.clone(),
        }),
    };
    let qemu = |accelerator, reason| match &capabilities.qemu {
        Ok(qemu) => Ok(Selection {
            hypervisor: Hypervisor::Qemu {
                binary: qemu.binary.clone(),
                accelerator,
            },
            reason,
        }),
        Err(cause) => Err(Unsupported::Qemu {
            backend,
            cause: cause.clone(),
        }),
    };
    match (backend, &capabilities.kvm) {
        (Backend::Auto, Ok(())) => own(Reason::BestAvailable),
        (Backend::Auto, Err(cause)) => qemu(Accelerator::Tcg, Reason::NoKvm(cause.clone())),
        (Backend::Kvm, _) => own(Reason::Requested),
        (Backend::QemuKvm, Ok(())) => qemu(Accelerator::Kvm, Reason::Requested),
        (Backend::QemuKvm, Err(cause)) => Err(Unsupported::Kvm {
            backend,
            cause: cause.clone(),
        }),
        (Backend::QemuTcg, _) => qemu(Accelerator::Tcg, Reason::Requested),
        (Backend::Process, _) => Ok(Selection {
            hypervisor: Hypervisor::Process,
            reason: Reason::Requested,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every choice on every kind of host, as a caller would be told.
    #[test]
    fn selections() {
        let qemu = || {
            Ok(Qemu {
                binary: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            })
        };
        let no_qemu = || {
            Err(QemuUnusable::NotFound {
                program: "qemu-system-x86_64".to_owned(),
            })
        };
        let mut table = String::new();
        for (host, kvm, qemu) in [
            ("all", Ok(()), qemu()),
            ("no kvm", Err(KvmUnusable::Missing), qemu()),
            (
                "pagetable kvm",
                Err(KvmUnusable::NoHardwareVirtualization),
                qemu(),
            ),
            ("no qemu", Ok(()), no_qemu()),
            ("nothing", Err(KvmUnusable::Permission), no_qemu()),
        ] {
            let capabilities = Capabilities { kvm, qemu };
            for backend in [
                Backend::Auto,
                Backend::Kvm,
                Backend::QemuKvm,
                Backend::QemuTcg,
                Backend::Process,
            ] {
                let outcome = match select(backend, &capabilities) {
                    Ok(Selection { hypervisor, reason }) => format!("{}: {reason}", short(&hypervisor)),
                    Err(cause) => {
                        let source = std::error::Error::source(&cause).map(ToString::to_string);
                        format!("error: {cause}: {}", source.unwrap_or_default())
                    }
                };
                table.push_str(&format!("{host}, {backend:?}: {outcome}\n"));
            }
        }
        assert_eq!(table, include_str!("selections.txt"));
    }

    fn short(hypervisor: &Hypervisor) -> &'static str {
        match hypervisor {
            Hypervisor::Kvm => "own kvm",
            Hypervisor::Qemu {
                accelerator: Accelerator::Kvm,
                ..
            } => "qemu kvm",
            Hypervisor::Qemu {
                accelerator: Accelerator::Tcg,
                ..
            } => "qemu tcg",
            Hypervisor::Process => "process",
        }
    }
}
