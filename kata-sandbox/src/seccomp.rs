//! The system calls that a container may make where the caller does not say: docker's default, in effect.
//!
//! Owns the list (moby/profiles `seccomp/default_linux.go`, as of Linux 6.17): what ordinary programs use, and what belongs
//! to a capability where the container has it. Everything else is "operation not permitted". Pure; the agent makes a filter
//! of it.

use kata_agent_proto::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

/// What every program may do, on x86_64 and on the older interfaces beside it.
const ALWAYS: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group \
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
    fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr \
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir \
    mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv \
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 \
    prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 \
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
    sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg \
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack \
    signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink \
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat \
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// What belongs to a capability.
const OF_CAPABILITIES: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Execution domains (personality(2)): Linux, of 32 bits, without address space randomization both; and the question for
/// the present one.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Every kind of socket but two: the kernel's cryptography, and vsock, by which the agent is spoken to.
const SOCKETS: [(&str, u64); 3] = [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)];

/// What clone(2) makes namespaces by: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";

/// Error numbers (errno(3)).
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile of a container whose programs can have these capabilities.
pub(crate) fn profile(capabilities: &[String]) -> LinuxSeccomp {
    let has = |wanted: &str| capabilities.iter().any(|name| name == wanted);
    let mut syscalls = vec![allow(ALWAYS)];
    syscalls.extend(SOCKETS.map(|(operator, family)| only("socket", operator, family, 0)));
    syscalls.extend(PERSONALITIES.map(|domain| only("personality", "SCMP_CMP_EQ", domain, 0)));
    let granted = OF_CAPABILITIES.iter().filter(|(name, _)| has(name));
    syscalls.extend(granted.map(|(_, names)| allow(names)));
    if !has("CAP_SYS_ADMIN") {
        syscalls.push(only("clone", "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES, 0));
        // Its flags are in memory, where a filter cannot look: a C library falls back to the other.
        let mut absent = allow("clone3");
        absent.action = ERRNO.into();
        absent.set_errnoret(ENOSYS);
        syscalls.push(absent);
    }
    LinuxSeccomp {
        default_action: ERRNO.into(),
        default_errno_ret: Some(EPERM),
        architectures: ["X86_64", "X86", "X32"]
            .map(|name| format!("SCMP_ARCH_{name}"))
            .into(),
        syscalls,
        ..LinuxSeccomp::default()
    }
}

fn allow(names: &str) -> LinuxSyscall {
    LinuxSyscall {
        names: names.split_whitespace().map(str::to_owned).collect(),
        action: ALLOW.into(),
        ..LinuxSyscall::default()
    }
}

/// Allowed where the first argument is so.
fn only(name: &str, operator: &str, value: u64, value_two: u64) -> LinuxSyscall {
    let argument = LinuxSeccompArg {
        op: operator.into(),
        value,
        value_two,
        ..LinuxSeccompArg::default()
    };
    LinuxSyscall {
        args: vec![argument],
        ..allow(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp) -> Vec<&str> {
        let rules = profile.syscalls.iter().filter(|rule| rule.action == ALLOW);
        rules.flat_map(|rule| &rule.names).map(String::as_str).collect()
    }

    #[test]
    fn every_name_is_there_once() {
        let mut names: Vec<_> = ALWAYS.split_whitespace().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| {
            name.bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        }));
    }

    #[test]
    fn what_belongs_to_a_capability_comes_with_it() {
        let none = profile(&[]);
        for name in [
            "mount",
            "unshare",
            "chroot",
            "bpf",
            "reboot",
            "io_uring_setup",
            "keyctl",
            "userfaultfd",
        ] {
            assert!(!names(&none).contains(&name), "{name}");
        }
        let clone3 = none.syscalls.last().expect("rules");
        assert_eq!((clone3.names[0].as_str(), clone3.errnoret()), ("clone3", ENOSYS));
        let all = profile(&OF_CAPABILITIES.map(|(name, _)| name.to_owned()));
        for name in ["mount", "unshare", "chroot", "bpf", "reboot", "clone3"] {
            assert!(names(&all).contains(&name), "{name}");
        }
        assert!(all.syscalls.iter().all(|rule| rule.action == ALLOW));
    }
}
