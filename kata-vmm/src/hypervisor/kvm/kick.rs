//! The signal that takes a processor's thread out of the guest.
//!
//! No handler is ever installed, since handlers belong to the whole process: the signal is blocked on the
//! thread, from before its first instruction ([`blocked`]), and let through only while KVM runs the guest
//! (KVM api.rst 4.18, `KVM_SET_SIGNAL_MASK`), which then answers EINTR; it stays pending, and [`take`]
//! removes it. One that comes between two runs ends the next one at once, so none is lost.
#![expect(
    unsafe_code,
    reason = "signal masks and signals of one thread have no safe interface"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

/// `sigset_t` of the kernel: a bit for each of 64 signals.
const KERNEL_SET_BYTES: usize = 8;

/// `struct kvm_signal_mask` (linux/kvm.h) with its set.
#[repr(C)]
#[derive(Debug)]
struct SignalMask {
    len: u32,
    set: [u8; KERNEL_SET_BYTES],
}

/// The type of KVM's ioctl numbers (linux/kvm.h, `KVMIO`).
const KVMIO: u32 = 0xae;

/// The size in the ioctl's number is that of the structure without the set.
type Length = u32;
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, Length);

/// The signal: one that no kernel sends (signal(7), "unused"), so nobody else waits for it. Not a real-time
/// one: those are queued, and sending one fails when the user's queue is full.
const SIGNAL: i32 = libc::SIGSTKFLT;

/// Starts a thread (by `start`) on which the signal is blocked.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn blocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = change(libc::SIG_BLOCK, Some(&just_the_signal()))?;
    let started = start();
    change(libc::SIG_SETMASK, Some(&before))?;
    started
}

/// On a processor's thread, before its first run: keeps the signal for the time in the guest.
///
/// # Errors
/// When KVM does not know `KVM_SET_SIGNAL_MASK`.
pub(super) fn arm(vcpu: &VcpuFd) -> io::Result<()> {
    let outside = change(libc::SIG_BLOCK, None)?;
    let mut set = [0; KERNEL_SET_BYTES];
    for number in 1..=i32::try_from(8 * KERNEL_SET_BYTES).unwrap_or_default() {
        // SAFETY: `outside` was filled by pthread_sigmask, and the number is in the set's range.
        let member = unsafe { libc::sigismember(&raw const outside, number) } == 1;
        if member && number != SIGNAL {
            let bit = usize::try_from(number - 1).unwrap_or_default();
            set[bit / 8] |= 1 << (bit % 8);
        }
    }
    let mask = SignalMask {
        len: u32::try_from(KERNEL_SET_BYTES).unwrap_or_default(),
        set,
    };
    // SAFETY: KVM reads the length and so many bytes behind it, which `SignalMask` has; it keeps neither.
    let result = unsafe { ioctl_with_ref(&VcpuDescriptor(vcpu), KVM_SET_SIGNAL_MASK(), &mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Removes the signal that ended a run, if there is one.
pub(super) fn take() {
    let set = just_the_signal();
    let none = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: all pointers are to live values or null, which this call allows for the information.
    let taken = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const none) };
    if taken < 0 {
        log::trace!("no kick was pending");
    }
}

/// Takes a processor's thread out of the guest, now or at its next run.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the thread has not been joined, so its identity is still its own (pthread_kill(3)).
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
    if result != 0 {
        log::debug!("a processor's thread is not kicked, it has ended: {result}");
    }
}

/// Changes what this thread blocks, if there is something to change; returns what it blocked before.
fn change(how: i32, set: Option<&libc::sigset_t>) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    let set = set.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set is live or null; the call fills `before` when it succeeds.
    let result = unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: the call has succeeded.
    Ok(unsafe { before.assume_init() })
}

fn just_the_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a place for one set, which the call fills.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was made empty, and the signal is a valid one.
    unsafe { libc::sigaddset(set.as_mut_ptr(), SIGNAL) };
    // SAFETY: both calls can only fail for invalid signals.
    unsafe { set.assume_init() }
}

/// What `ioctl_with_ref` wants to see of a processor.
struct VcpuDescriptor<'a>(&'a VcpuFd);

impl AsRawFd for VcpuDescriptor<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
