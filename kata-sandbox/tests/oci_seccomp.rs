//! `linux.seccomp`, and the filter of containers that say nothing about one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use bed::{Bed, script, text};
use guest::{Guest, process, spec, with_linux};
use kata_agent_proto::{FailureKind, oci};
use kata_sandbox::{Container, Sandbox};

fn rule(
    names: &[&str],
    action: &str,
    errno: Option<u32>,
    args: &[(u64, u64, u64, &str)],
) -> oci::LinuxSyscall {
    let mut rule = oci::LinuxSyscall {
        names: names.iter().map(|&name| name.into()).collect(),
        action: action.into(),
        args: args
            .iter()
            .map(|&(index, value, value_two, op)| oci::LinuxSeccompArg {
                index,
                value,
                value_two,
                op: op.into(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    if let Some(errno) = errno {
        rule.set_errnoret(errno);
    }
    rule
}

fn profile(default: &str, syscalls: Vec<oci::LinuxSyscall>) -> oci::LinuxSeccomp {
    oci::LinuxSeccomp {
        default_action: default.into(),
        syscalls,
        ..Default::default()
    }
}

fn filtered(profile: oci::LinuxSeccomp, script: &str) -> oci::Spec {
    with_linux(|linux| linux.seccomp = Some(profile).into(), script)
}

/// Makes system calls by their numbers (x86_64) and tells their errors: mkdir 83, personality 135, sync 162, fchmodat2 452.
const CALLS: &str = r#"perl -e '
sub ask { my ($name, $number, @call) = @_; $! = 0; my $done = syscall($number, @call); print "$name ", $done == -1 ? $!+0 : "done", "\n" }
my $directory = "/made-by-a-test";
ask("mkdir", 83, $directory, 0755); rmdir $directory;
ask("personality 0", 135, 0); ask("personality 8", 135, 8); ask("personality 9", 135, 9); ask("personality 4294967295", 135, 4294967295);
ask("newer", 452, -1, 0, 0, 0);
'"#;

fn rules() -> oci::LinuxSeccomp {
    let equal = "SCMP_CMP_EQ";
    profile(
        "SCMP_ACT_ALLOW",
        vec![
            rule(&["mkdir", "no_such_call"], "SCMP_ACT_ERRNO", Some(30), &[]),
            rule(&["personality"], "SCMP_ACT_ERRNO", Some(5), &[(0, 8, 0, equal)]),
            rule(
                &["personality"],
                "SCMP_ACT_ERRNO",
                Some(6),
                &[(0, 1, 1, "SCMP_CMP_MASKED_EQ"), (1, 0, 0, "SCMP_CMP_GE")],
            ),
            rule(&["fchmodat2"], "SCMP_ACT_ERRNO", Some(38), &[]),
        ],
    )
}

const ANSWERS: &str =
    "mkdir 30\npersonality 0 done\npersonality 8 5\npersonality 9 6\npersonality 4294967295 6\nnewer 38";

/// What each action does with a system call: what a signal ends has 128 and its number, SIGSYS is 31.
async fn has_each_action(guest: &Guest) {
    let sync = |action, errno, script: &str| {
        let rules = vec![rule(&["sync"], action, errno, &[])];
        filtered(profile("SCMP_ACT_ALLOW", rules), script)
    };
    let asks = "exec perl -e '$! = 0; print syscall(162), \" \", $! + 0'";
    for (action, errno, status, output) in [
        ("SCMP_ACT_KILL_PROCESS", None, 159, ""),
        ("SCMP_ACT_KILL", None, 159, ""),
        ("SCMP_ACT_KILL_THREAD", None, 159, ""),
        ("SCMP_ACT_TRAP", None, 159, ""),
        // What is logged goes to a log that a kernel need not have.
        ("SCMP_ACT_LOG", None, 0, "0 0"),
        ("SCMP_ACT_ALLOW", None, 0, "0 0"),
        // Nobody traces: the call does not exist.
        ("SCMP_ACT_TRACE", None, 0, "-1 38"),
        ("SCMP_ACT_ERRNO", None, 0, "-1 1"),
        ("SCMP_ACT_ERRNO", Some(122), 0, "-1 122"),
    ] {
        let ran = guest.run(sync(action, errno, asks)).await;
        assert_eq!((ran.status, ran.output.as_str()), (status, output), "{action}");
    }
    // A trap is a signal that can be handled; of a kill nothing is told.
    let handles = "exec perl -e '$SIG{SYS} = sub { print \"trapped \" }; syscall(162); print \"on\"'";
    let ran = guest.run(sync("SCMP_ACT_TRAP", None, handles)).await;
    assert_eq!((ran.status, ran.output.as_str()), (0, "trapped on"));
    let ran = guest.run(sync("SCMP_ACT_KILL_PROCESS", None, handles)).await;
    assert_eq!((ran.status, ran.output.as_str()), (159, ""));
    // Of several threads one is killed, or all.
    let threads = "exec perl -e 'use threads; use POSIX (); $| = 1; threads->create(sub { syscall(162) })->detach; \
                   do { select(undef, undef, undef, 0.01); @tasks = glob(\"/proc/self/task/*\") } while @tasks > 1; \
                   print \"on\"; POSIX::_exit(0)'";
    for (action, status, output) in [
        ("SCMP_ACT_KILL_THREAD", 0, "on"),
        ("SCMP_ACT_KILL", 0, "on"),
        ("SCMP_ACT_KILL_PROCESS", 159, ""),
    ] {
        let ran = guest.run(sync(action, None, threads)).await;
        assert_eq!(
            (ran.status, ran.output.as_str()),
            (status, output),
            "{action} in a thread"
        );
    }
}

/// A program that makes the system call 36 of i386, which is sync, and ends with its error: an ELF file as the shell's
/// `printf` takes it.
fn of_another_architecture() -> String {
    // mov $36, %eax; int $0x80; mov %eax, %edi; neg %edi; mov $60, %eax; syscall
    let code = [
        0xb8, 36, 0, 0, 0, 0xcd, 0x80, 0x89, 0xc7, 0xf7, 0xdf, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
    ];
    let size = 64 + 56 + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // A program for x86_64 of version 1, and where it begins; its one segment, and nothing else.
    file.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    file.extend([0x40_0078_u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // The file whole, to read and to execute.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    file.extend(
        [0, 0x40_0000, 0x40_0000, size, size, 0x1000]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(code);
    file.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// A filter is for the architectures that it names, and for the guest's own in any case; no system call of another is made.
async fn holds_for_its_architectures(guest: &Guest) {
    let program = of_another_architecture();
    guest
        .shell(&format!("printf '{program}' >/i386 && chmod 755 /i386"))
        .await;
    // A host that is no guest may have a kernel without them.
    if guest.run(spec("/i386")).await.status != 0 && !guest.is_machine {
        return;
    }
    let named = |architectures: &[&str]| {
        let rules = vec![rule(&["sync"], "SCMP_ACT_ERRNO", Some(77), &[])];
        let mut profile = profile("SCMP_ACT_ALLOW", rules);
        profile.architectures = architectures.iter().map(|&word| word.into()).collect();
        filtered(
            profile,
            "perl -e '$! = 0; syscall(162); print $! + 0, \" \"'; exec /i386",
        )
    };
    for (architectures, status) in [
        (&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"][..], 77),
        (&["SCMP_ARCH_X86"], 77),
        (&["SCMP_ARCH_AARCH64"], 159),
        (&[], 159),
    ] {
        let ran = guest.run(named(architectures)).await;
        assert_eq!(
            (ran.status, ran.output.trim_end()),
            (status, "77"),
            "{architectures:?}"
        );
    }
}

on_every_backend! {
    /// Conformance: oci linux.seccomp.defaultAction
    /// Conformance: oci linux.seccomp.architectures
    /// Conformance: oci linux.seccomp.flags
    /// Conformance: oci linux.seccomp.syscalls
    async fn a_filter_holds_for_every_process_of_its_container(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        // With rights and without, with the gain of privileges and without: the filter is the same, and takes nothing else.
        let status = "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status | tr -d '\\t'";
        let looks = format!("{CALLS}; {status}");
        let mut users = Vec::new();
        for (uid, no_new_privileges) in [(0, false), (0, true), (1000, false), (1000, true)] {
            let mut spec = filtered(rules(), &looks);
            let process = spec.process.mut_or_insert_default();
            process.user.mut_or_insert_default().uid = uid;
            process.no_new_privileges = no_new_privileges;
            let mut capabilities = oci::LinuxCapabilities::default();
            for set in [&mut capabilities.bounding, &mut capabilities.permitted, &mut capabilities.effective] {
                *set = ["CAP_KILL", "CAP_DAC_OVERRIDE"].map(String::from).to_vec();
            }
            process.capabilities = Some(capabilities).into();
            let effective = if uid == 0 { "0000000000000022" } else { "0000000000000000" };
            let expected = format!("{ANSWERS}\nCapEff:{effective}\nNoNewPrivs:{}\nSeccomp:2", u8::from(no_new_privileges));
            assert_eq!(guest.output(spec).await, expected, "user {uid}, {no_new_privileges}");
            users.push((uid, no_new_privileges, expected));
        }
        let id = guest.idle(filtered(rules(), "")).await;
        for (uid, no_new_privileges, expected) in users {
            let mut beside = process(&looks);
            beside.user.mut_or_insert_default().uid = uid;
            beside.no_new_privileges = no_new_privileges;
            let mut capabilities = oci::LinuxCapabilities::default();
            for set in [&mut capabilities.bounding, &mut capabilities.permitted, &mut capabilities.effective] {
                *set = ["CAP_KILL", "CAP_DAC_OVERRIDE"].map(String::from).to_vec();
            }
            beside.capabilities = Some(capabilities).into();
            assert_eq!(guest.exec(&id, beside).await.output, expected, "beside, user {uid}, {no_new_privileges}");
        }

        holds_for_its_architectures(&guest).await;
        has_each_action(&guest).await;

        // A list of what is allowed: the default's error number, and no calls that are newer than the list.
        let mut strict = profile("SCMP_ACT_ERRNO", vec![rule(&["sync"], "SCMP_ACT_ALLOW", None, &[])]);
        strict.default_errno_ret = Some(13);
        strict.architectures = vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into(), "SCMP_ARCH_AARCH64".into()];
        strict.flags = vec!["SECCOMP_FILTER_FLAG_LOG".into(), "SECCOMP_FILTER_FLAG_SPEC_ALLOW".into()];
        // Not even execve is in it, nor what would tell of that.
        let ran = guest.run(filtered(strict.clone(), "echo ran")).await;
        assert!(ran.status != 0 && ran.output.is_empty(), "{ran:?}");
        let names = "execve execveat brk mmap munmap mprotect read write open openat close fstat newfstatat lseek exit_group arch_prctl \
                     set_tid_address set_robust_list rseq prlimit64 getrandom pread64 access rt_sigaction rt_sigprocmask ioctl getpid \
                     getuid geteuid getgid getegid dup2 fcntl readlink stat futex sysinfo uname getpgrp getppid getdents64 pipe pipe2 \
                     clone clone3 vfork wait4 rt_sigreturn getcwd poll sigaltstack madvise gettid setlocale rmdir";
        strict.syscalls.push(rule(&names.split_whitespace().collect::<Vec<_>>(), "SCMP_ACT_ALLOW", None, &[]));
        let seen = guest.output(filtered(strict, CALLS)).await;
        assert!(seen.starts_with("mkdir 13\npersonality 0 13\n") && seen.ends_with("newer 38"), "{seen}");
        guest.stop().await;
    }

    /// Conformance: oci linux.seccomp.architectures
    /// Conformance: oci linux.seccomp.flags
    async fn a_filter_that_makes_no_sense_is_refused_by_its_field(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let one = |rule| filtered(profile("SCMP_ACT_ALLOW", vec![rule]), "true");
        let with = |change: fn(&mut oci::LinuxSeccomp)| {
            let mut profile = profile("SCMP_ACT_ALLOW", vec![]);
            change(&mut profile);
            filtered(profile, "true")
        };
        let (invalid, unsupported) = (FailureKind::Invalid, FailureKind::Unsupported);
        for (spec, kind, field) in [
            (filtered(profile("ALLOW", vec![]), "true"), invalid, "defaultAction"),
            (filtered(profile("SCMP_ACT_NOTIFY", vec![]), "true"), unsupported, "defaultAction: SCMP_ACT_NOTIFY"),
            (one(rule(&["sync"], "DENY", None, &[])), invalid, "syscalls[0].action"),
            (one(rule(&[], "SCMP_ACT_KILL", None, &[])), invalid, "syscalls[0].names"),
            (one(rule(&["sync"], "SCMP_ACT_KILL", None, &[(7, 0, 0, "SCMP_CMP_EQ")])), invalid, "syscalls[0].args[0].index"),
            (one(rule(&["sync"], "SCMP_ACT_KILL", None, &[(0, 0, 0, "==")])), invalid, "syscalls[0].args[0].op"),
            (one(rule(&["sync"], "SCMP_ACT_ERRNO", Some(70_000), &[])), invalid, "syscalls[0].action"),
            (with(|profile| profile.architectures.push("PDP11".into())), invalid, "architectures[0]"),
            (with(|profile| profile.flags.push("FAST".into())), invalid, "flags[0]"),
            (with(|profile| profile.flags.push("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".into())), unsupported, "flags[0]"),
            (with(|profile| profile.listener_path = "/l".into()), unsupported, "listenerPath"),
        ] {
            guest.refused_as(spec, kind, &format!("linux.seccomp.{field}")).await;
        }
        assert_eq!(guest.traces().await, before, "nothing is left");
        assert_eq!(guest.output(spec("echo goes on")).await, "goes on");
        guest.stop().await;
    }

    async fn a_container_that_says_nothing_has_dockers_filter(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        // unshare 272 of a user namespace (0x10000000), mount 165, io_uring_setup 425, keyctl 250, socket 41 of vsock (40)
        // and of a local one (1), personality 135, chroot 161 with its capability, clone 56 of a user namespace.
        let calls = r#"perl -e '
sub ask { my ($name, $number, @call) = @_; $! = 0; my $done = syscall($number, @call); print "$name ", $done == -1 ? $!+0 : "done", "\n"; $done }
ask("unshare", 272, 0x10000000); ask("mount", 165, 0, 0, 0, 0, 0); ask("io_uring", 425, 1, 0); ask("keyctl", 250, 0, 0, 0);
ask("vsock", 41, 40, 1, 0); ask("local", 41, 1, 1, 0); ask("persona", 135, 0xffffffff); ask("persona 5", 135, 5);
my $root = "/"; ask("chroot", 161, $root); ask("clone", 56, 0x10000000 | 17, 0, 0, 0, 0); ask("clone3", 435, 0, 0);
'; grep Seccomp: /proc/self/status | tr -d '\t'; (sleep 0 & wait; echo forks)"#;
        let filtered = "unshare 1\nmount 1\nio_uring 1\nkeyctl 1\nvsock 1\nlocal done\npersona done\npersona 5 1\nchroot done\nclone 1\n\
                        clone3 38\nSeccomp:2\nforks";
        let output = script(&sandbox, calls).await;
        assert_eq!(text(&output), filtered, "{}", String::from_utf8_lossy(&output.stderr));
        let own = sandbox.create_container(Container::new(&bed.rootfs).name("own").args(["sh", "-c", calls])).await.unwrap();
        let output = own.spawn().await.unwrap().output().await.unwrap();
        assert_eq!(text(&output), filtered, "its own process");
        // Without it the kernel answers: an address that is none, a system call with wrong arguments.
        let container = Container::new(&bed.rootfs).name("unconfined").seccomp_unconfined().args(["sh", "-c", calls]);
        let unconfined = sandbox.create_container(container).await.unwrap();
        let seen = text(&unconfined.spawn().await.unwrap().output().await.unwrap());
        assert!(seen.contains("persona 5 done") && seen.contains("Seccomp:0") && !seen.contains("clone3 38"), "{seen}");
        sandbox.stop().await.unwrap();
    }
}
