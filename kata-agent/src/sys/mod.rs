//! System calls that have no safe face elsewhere, one operation a function.
//!
//! The only module of the agent with `unsafe`. Owns the invariants of each call; must not know what the
//! agent uses them for.
#![expect(
    unsafe_code,
    reason = "system calls without a safe wrapper; each block states its invariant"
)]

mod making;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) use making::{
    Birth, MountAttributes, Scheduling, fork_child, fork_into, fork_sibling, load_filter, mount_setattr,
    set_io_priority, set_personality, set_scheduling, unshare,
};

use crate::reaper::{Ending, Usage};

/// Which side of [`fork`] this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old process, with the new one's id.
    Parent(Pid),
}

/// Splits the process in two. Only before the first thread is made.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the callers run before any thread exists, so the child's copy of every lock is free.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// A descriptor that the kernel wrote as an int into the low half.
fn new_fd(written: u64) -> rustix::io::Result<OwnedFd> {
    let number = i32::try_from(written & u64::from(u32::MAX)).map_err(|_| rustix::io::Errno::BADF)?;
    // SAFETY: the kernel has just made the descriptor for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)
}

/// Closes every descriptor but the standard streams and some more. Only in a process that is about to become another
/// program, or none: nothing of this one may use its descriptors any more.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for next in kept.into_iter().chain([u32::MAX]) {
        if first < next {
            // SAFETY: whoever owns the descriptors is not run again, by this function's condition.
            check(unsafe { libc::close_range(first, next - 1, 0) })?;
        }
        first = first.max(next.saturating_add(1));
    }
    Ok(())
}

/// Gives every signal its default meaning, and blocks none.
pub(crate) fn default_signals() {
    // The kernel's struct sigaction (handler, flags, restorer, mask), all zero: SIG_DFL. The C library
    // would not touch those signals that it keeps to itself.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let (new, old) = (default.as_ptr(), std::ptr::null_mut::<u64>());
        // SAFETY: `new` has the layout above, and the mask has the size that is given. The two signals
        // that cannot be changed are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>()) };
    }
    let none = signal_set(&[]);
    // SAFETY: `none` is initialized, and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Replaces the process's program and environment; returns only the error.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: `path` and the null-terminated pointers live until the call fails.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([std::ptr::null()]).collect()
}

/// Leaves the shared namespaces; see `unshare(2)`. Only before the first thread is made.
pub(crate) fn unshare_namespaces() -> io::Result<()> {
    let flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    // SAFETY: unshare of namespaces touches no memory of this process.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// An IPC namespace without processes in it (ipc_namespaces(7)); this process goes there and comes back.
pub(crate) fn new_ipc_namespace() -> io::Result<OwnedFd> {
    let own = std::fs::File::open("/proc/self/ns/ipc")?;
    // SAFETY: unshare of a namespace touches no memory of this process.
    check(unsafe { libc::unshare(libc::CLONE_NEWIPC) })?;
    let made = std::fs::File::open("/proc/self/ns/ipc");
    let kind = rustix::thread::LinkNameSpaceType::InterProcessCommunication;
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(kind))?;
    Ok(made?.into())
}

/// Has the next child be the first process of a PID namespace; see `unshare(2)`.
pub(crate) fn unshare_pids() -> io::Result<()> {
    // SAFETY: unshare of namespaces touches no memory of this process.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Takes over a descriptor that this process inherited. Each number once.
pub(crate) fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks the number up.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the number is open, and was given to this process on its command line to be its own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the event loop watch a descriptor.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers the same open descriptor until the AsyncFd drops it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}

/// The process id of some child that has ended and is not waited for yet; leaves it waitable.
pub(crate) fn peek_ended_child() -> io::Result<Option<Pid>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the answer.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: waitid filled the SIGCHLD part of `info`, or left it zero.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

/// What a killed process's signal number is added to.
const SIGNAL_BASE: i32 = 128;

/// How a child ended and what it used, if it has ended; it stays a zombie.
pub(crate) fn peek_ending(pidfd: &impl AsFd) -> io::Result<Option<Ending>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: all bytes zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all bytes zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let (to_info, to_usage) = (&raw mut info, &raw mut usage);
    // SAFETY: the kernel writes a siginfo_t and a rusage, which the pointers lead to (waitid(2), raw system call).
    let result = unsafe { libc::syscall(libc::SYS_waitid, libc::P_PIDFD, fd, to_info, flags, to_usage) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid(2) filled it in, or left it zero when no child has ended.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: waitid(2) filled it in.
    let value = unsafe { info.si_status() };
    let nanoseconds = |time: libc::timeval| {
        let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
        u64::try_from(micros).unwrap_or(0).saturating_mul(1000)
    };
    Ok(Some(Ending {
        status: match info.si_code {
            libc::CLD_EXITED => value,
            _ => SIGNAL_BASE + value,
        },
        usage: Usage {
            user_ns: nanoseconds(usage.ru_utime),
            system_ns: nanoseconds(usage.ru_stime),
            // The kernel counts it in KiB.
            memory_peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
        },
    }))
}

/// What an idle process waits for.
const IDLE_SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD];

/// Keeps the signals of [`idle`] for later, in this process and in those that it makes.
pub(crate) fn block_idle_signals() -> io::Result<()> {
    let signals = signal_set(&IDLE_SIGNALS);
    // SAFETY: `signals` is initialized; blocked signals are queued even for an init process.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) }).map(drop)
}

/// Reaps children until SIGTERM or SIGINT comes, also before this: who makes the process blocks them.
pub(crate) fn idle() -> io::Result<()> {
    let signals = signal_set(&IDLE_SIGNALS);
    block_idle_signals()?;
    loop {
        // SAFETY: `signals` is initialized, and no details are asked for.
        match unsafe { libc::sigwaitinfo(&raw const signals, std::ptr::null_mut()) } {
            libc::SIGTERM | libc::SIGINT => return Ok(()),
            _ => reap_children(),
        }
    }
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: all-zero is a valid sigset_t.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in signals {
        // SAFETY: `set` is initialized and the numbers are of named signals.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

fn reap_children() {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Sends a signal to the process behind a pidfd.
pub(crate) fn pidfd_signal(pidfd: &impl AsFd, signal: i32) -> io::Result<()> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open while borrowed, and a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, none, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Adds bytes to the kernel's entropy with full credit and reseeds its generator from it; see random(4).
pub(crate) fn reseed_random(device: &impl AsFd, bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let fd = device.as_fd().as_raw_fd();
    let pool = entropy_request(bytes)?;
    // SAFETY: `pool` has the layout of rand_pool_info with as many bytes as it announces.
    check(unsafe { libc::ioctl(fd, RNDADDENTROPY, pool.as_ptr()) })?;
    // SAFETY: this request has no argument.
    check(unsafe { libc::ioctl(fd, RNDRESEEDCRNG) }).map(drop)
}

/// A `struct rand_pool_info`: the credit in bits, the length in bytes, then the bytes.
fn entropy_request(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let length = i32::try_from(bytes.len()).map_err(io::Error::other)?;
    let bits = length.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    Ok([&bits.to_ne_bytes()[..], &length.to_ne_bytes()[..], bytes].concat())
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: creates a socket, no memory is involved.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    let socket = take_fd(socket)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: `request` is a valid ifreq for the length of the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Makes a part of a disk a partition, in bytes and with a number that is free (uapi linux/blkpg.h).
pub(crate) fn add_partition(disk: &impl AsFd, number: i32, offset: u64, bytes: u64) -> io::Result<()> {
    const BLKPG_ADD_PARTITION: i32 = 1;
    change_partition(disk, BLKPG_ADD_PARTITION, number, offset, bytes)
}

/// Undoes it; a partition that is in use is busy.
pub(crate) fn delete_partition(disk: &impl AsFd, number: i32) -> io::Result<()> {
    const BLKPG_DEL_PARTITION: i32 = 2;
    change_partition(disk, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn change_partition(disk: &impl AsFd, op: i32, number: i32, offset: u64, bytes: u64) -> io::Result<()> {
    const BLKPG: libc::c_ulong = 0x1269;
    /// `struct blkpg_partition`, whose names mean nothing to the kernel.
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        pno: libc::c_int,
        names: [u8; 128],
    }
    /// `struct blkpg_ioctl_arg`.
    #[repr(C)]
    struct Argument {
        op: libc::c_int,
        flags: libc::c_int,
        datalen: libc::c_int,
        data: *const Partition,
    }
    let partition = Partition {
        start: i64::try_from(offset).map_err(io::Error::other)?,
        length: i64::try_from(bytes).map_err(io::Error::other)?,
        pno: number,
        names: [0; 128],
    };
    let argument = Argument {
        op,
        flags: 0,
        datalen: i32::try_from(size_of::<Partition>()).map_err(io::Error::other)?,
        data: &raw const partition,
    };
    // SAFETY: `argument` and the `partition` that it points to have the layout of the request and outlive it.
    check(unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG, &raw const argument) }).map(drop)
}

/// Attaches a file to a free loop device, which is gone with its last user: until it is mounted, that is the device in
/// the answer, beside its path.
pub(crate) fn attach_loop(file: &impl AsFd, read_only: bool) -> io::Result<(String, std::fs::File)> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
    let control = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    loop {
        // SAFETY: this request has no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = format!("/dev/loop{number}");
        // One that is opened for reading alone is read-only.
        let device = std::fs::File::options()
            .read(true)
            .write(!read_only)
            .open(&path)?;
        let config = loop_config(file.as_fd().as_raw_fd(), read_only);
        // SAFETY: `config` has the size of struct loop_config.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) }) {
            Ok(_) => return Ok((path, device)),
            // Somebody else was faster: the next free one.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Asks the device mapper (`/dev/mapper/control`) for something, by the request's number in linux/dm-ioctl.h.
/// `request` is a `struct dm_ioctl` with what follows it, and the answer afterwards.
pub(crate) fn ask_device_mapper(control: &impl AsFd, number: u32, request: &mut [u8]) -> io::Result<()> {
    /// `_IOWR(DM_IOCTL, 0, struct dm_ioctl)`, whose argument has 312 bytes.
    const DM: u32 = 3 << 30 | 312 << 16 | 0xfd << 8;
    let length = u32::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let size = request.get_mut(12..16).ok_or(io::ErrorKind::InvalidInput)?;
    size.copy_from_slice(&length.to_ne_bytes());
    let number = libc::c_ulong::from(DM | number);
    // SAFETY: the kernel reads and writes as many bytes as `data_size`, at byte 12, says, and refuses less than 312.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), number as _, request.as_mut_ptr()) }).map(drop)
}

/// A `struct loop_config` (linux/loop.h): fd, block size, then a loop_info64 with its flags at 52.
fn loop_config(fd: RawFd, read_only: bool) -> [u8; 304] {
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    let mut config = [0; 304];
    config[..4].copy_from_slice(&fd.to_ne_bytes());
    let access = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    config[60..64].copy_from_slice(&(access | LO_FLAGS_AUTOCLEAR).to_ne_bytes());
    config
}

/// Commands, types and flags of bpf(2), from linux/bpf.h.
mod bpf {
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const PROG_ATTACH: libc::c_int = 8;
    pub(super) const PROG_GET_FD_BY_ID: libc::c_int = 13;
    pub(super) const PROG_QUERY: libc::c_int = 16;
    pub(super) const TYPE_CGROUP_DEVICE: u32 = 15;
    pub(super) const ATTACH_CGROUP_DEVICE: u32 = 6;
    pub(super) const ALLOW_MULTI: u32 = 2;
    pub(super) const REPLACE: u32 = 4;
    /// Programs of a cgroup that are looked at.
    pub(super) const PROGRAMS: u32 = 8;

    /// Two neighbours in a `union bpf_attr`.
    pub(super) fn pair(first: u32, second: u32) -> u64 {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Calls bpf(2).
///
/// # Safety
/// What `attributes` points to, by the rules of the command, lives and has the announced length.
unsafe fn call_bpf(command: libc::c_int, attributes: &mut [u64; 6]) -> io::Result<libc::c_int> {
    let (at, size) = (attributes.as_mut_ptr(), size_of_val(attributes));
    // SAFETY: `at` and `size` are the union; for what it points to the caller answers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the kernel a program that decides on devices, instruction by instruction.
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    let license = c"Apache-2.0";
    let mut load = [
        bpf::pair(bpf::TYPE_CGROUP_DEVICE, count),
        instructions.as_ptr().expose_provenance() as u64,
        license.as_ptr().expose_provenance() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the instructions have the announced number and the license ends with a null byte.
    let fd = unsafe { call_bpf(bpf::PROG_LOAD, &mut load) }?;
    // SAFETY: the kernel has just made the descriptor for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The program at a cgroup itself that decides on devices, if there is one.
pub(crate) fn device_program(cgroup: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut ids = [0_u32; bpf::PROGRAMS as usize];
    let mut query = [
        bpf::pair(
            cgroup.as_fd().as_raw_fd().cast_unsigned(),
            bpf::ATTACH_CGROUP_DEVICE,
        ),
        0,
        ids.as_mut_ptr().expose_provenance() as u64,
        bpf::pair(bpf::PROGRAMS, 0),
        0,
        0,
    ];
    // SAFETY: there is place for as many ids as announced.
    unsafe { call_bpf(bpf::PROG_QUERY, &mut query) }?;
    if ids[0] == 0 {
        return Ok(None);
    }
    let mut open = [bpf::pair(ids[0], 0), 0, 0, 0, 0, 0];
    // SAFETY: this command points to nothing.
    let fd = unsafe { call_bpf(bpf::PROG_GET_FD_BY_ID, &mut open) }?;
    // SAFETY: the kernel has just made the descriptor for this process.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Has a program decide on the devices of a cgroup, in place of one that does so already.
pub(crate) fn attach_device_program(
    cgroup: &impl AsFd,
    program: &impl AsFd,
    before: Option<&OwnedFd>,
) -> io::Result<()> {
    let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
    let flags = bpf::ALLOW_MULTI | before.map_or(0, |_| bpf::REPLACE);
    let mut attach = [
        bpf::pair(number(cgroup.as_fd()), number(program.as_fd())),
        bpf::pair(bpf::ATTACH_CGROUP_DEVICE, flags),
        bpf::pair(before.map_or(0, |before| number(before.as_fd())), 0),
        0,
        0,
        0,
    ];
    // SAFETY: this command points to nothing.
    unsafe { call_bpf(bpf::PROG_ATTACH, &mut attach) }.map(drop)
}

/// Has the kernel swap to a device or file; see swapon(2).
pub(crate) fn swap_on(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` lives for the length of the call.
    check(unsafe { libc::swapon(path.as_ptr(), 0) }).map(drop)
}

/// Grows a mounted ext4 to so many blocks (`EXT4_IOC_RESIZE_FS` of Linux `fs/ext4/ext4.h`).
pub(crate) fn resize_ext4(volume: &impl AsFd, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    let fd = volume.as_fd().as_raw_fd();
    // SAFETY: the argument is a 64-bit number that lives for the length of the call.
    check(unsafe { libc::ioctl(fd, EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}

/// Ends the process at once, without destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
