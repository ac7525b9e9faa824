//! KVM: the only place that makes KVM calls.
//!
//! ```text
//!  x86_64::probe                                     can stock kernels run here?
//!  assemble ─► memory, devices, x86_64 ─► machine    every call before the first instruction
//!                                          │ vcpu    a thread each: run, answer the exit
//!                                          │ gate, kick   hold and stop them
//!                                          └ bus     which device answers
//! ```
//!
//! What is of one architecture stands in `x86_64`, and nothing outside of it knows registers or addresses;
//! another architecture is another such folder, with the same names, chosen here.
//! It must not know the control socket, images or agents.

mod assemble;
mod bus;
mod devices;
mod exits;
mod gate;
mod kick;
mod machine;
mod memory;
mod vcpu;
mod x86_64;

use kvm_ioctls::{Kvm, VmFd};

pub(super) use assemble::launch;
pub(super) use x86_64::probe::probe;

/// The architecture that this machine has: the only name by which the rest of this room calls it.
use x86_64 as arch;

/// How often an interrupted VM creation is tried again.
const ATTEMPTS: u32 = 5;

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
