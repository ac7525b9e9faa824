//! `process` of a specification: what a program finds itself in, as a container's first and as one beside it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use bed::Bed;
use guest::{Guest, process, spec, with_process};
use kata_agent_proto::agent::StringUser;
use kata_agent_proto::{CallError, FailureKind, oci};

const BOUNDING: [&str; 4] = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_RAW"];

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.into()).collect()
}

/// Every part of a process that shows in it.
fn furnished(process: &mut oci::Process) {
    process.user = Some(oci::User {
        uid: 1000,
        gid: 1001,
        additional_gids: vec![7, 5000],
        umask: Some(0o027),
        ..Default::default()
    })
    .into();
    process.cwd = "/var/tmp".into();
    process.env.extend(["B=2".into(), "A=1".into(), "EMPTY=".into()]);
    process.rlimits = [
        ("RLIMIT_NOFILE", 100, 200),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_STACK", 8 << 20, u64::MAX),
    ]
    .map(|(type_, soft, hard)| oci::POSIXRlimit {
        type_: type_.into(),
        soft,
        hard,
        ..Default::default()
    })
    .to_vec();
    process.capabilities = Some(oci::LinuxCapabilities {
        bounding: words(&BOUNDING),
        permitted: words(&["CAP_KILL", "CAP_NET_RAW"]),
        effective: words(&["CAP_KILL"]),
        inheritable: words(&["CAP_KILL"]),
        ambient: words(&["CAP_KILL"]),
        ..Default::default()
    })
    .into();
    process.no_new_privileges = true;
    process.oom_score_adj = 345;
    process.scheduler = Some(oci::Scheduler {
        policy: "SCHED_BATCH".into(),
        nice: 5,
        ..Default::default()
    })
    .into();
    process.io_priority = Some(oci::LinuxIOPriority {
        class: "IOPRIO_CLASS_BE".into(),
        priority: 6,
        ..Default::default()
    })
    .into();
}

/// One thing a line. `setpriv` would need rights; the kernel says it all.
const LOOKS: &str = r#"
id -u; id -g; id -G; umask; pwd; tr '\0' '\n' </proc/$$/environ
ulimit -Sn; ulimit -Hn; ulimit -Hc; ulimit -Ss; ulimit -Hs
grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr '\t' ' '
cat /proc/self/oom_score_adj
chrt -p $$ | sed 's/pid .*'\''s //'; nice; ionice
"#;

const SEEN: &str = "\
1000
1001
1001 7 5000
0027
/var/tmp
PATH=/usr/sbin:/usr/bin:/sbin:/bin
B=2
A=1
EMPTY=
HOME=/
100
200
0
8192
unlimited
CapInh: 0000000000000020
CapPrm: 0000000000000020
CapEff: 0000000000000020
CapBnd: 00000000000020e0
CapAmb: 0000000000000020
NoNewPrivs: 1
345
current scheduling policy: SCHED_BATCH
current scheduling priority: 0
5
best-effort: prio 6";

/// Each kind, in the order of proc_pid_limits(5), with limits that nobody has by chance.
const LIMITS: [(&str, u64, u64); 16] = [
    ("RLIMIT_CPU", 1001, 2001),
    ("RLIMIT_FSIZE", 1_000_000_002, 2_000_000_002),
    ("RLIMIT_DATA", 1_000_000_003, 2_000_000_003),
    ("RLIMIT_STACK", 8_400_000, 9_000_004),
    ("RLIMIT_CORE", 5, 6),
    ("RLIMIT_RSS", 1_000_000_006, 2_000_000_006),
    ("RLIMIT_NPROC", 5007, 6007),
    ("RLIMIT_NOFILE", 108, 208),
    ("RLIMIT_MEMLOCK", 70_009, 80_009),
    ("RLIMIT_AS", 4_000_000_010, u64::MAX),
    ("RLIMIT_LOCKS", 111, 211),
    ("RLIMIT_SIGPENDING", 112, 212),
    ("RLIMIT_MSGQUEUE", 100_013, 200_013),
    ("RLIMIT_NICE", 14, 24),
    ("RLIMIT_RTPRIO", 15, 25),
    ("RLIMIT_RTTIME", 1_000_016, 2_000_016),
];

/// Of each kind what can be asked for: a host may have taken the right to raise limits from its root.
fn possible_limits(guest: &Guest) -> [(&'static str, u64, u64); 16] {
    if guest.is_machine {
        return LIMITS;
    }
    let text = std::fs::read_to_string("/proc/self/limits").unwrap();
    let mut hosts = text
        .lines()
        .skip(1)
        .map(|line| line[47..67].trim().parse().unwrap_or(u64::MAX));
    LIMITS.map(|(type_, soft, hard)| {
        let most = hosts.next().unwrap();
        (type_, soft.min(most), hard.min(most))
    })
}

/// Each kind of limit, of a first process and of one beside it.
async fn has_every_limit(guest: &Guest, beside: &str) {
    let limits = possible_limits(guest);
    let all = |process: &mut oci::Process| {
        process.rlimits = limits
            .map(|(type_, soft, hard)| oci::POSIXRlimit {
                type_: type_.into(),
                soft,
                hard,
                ..Default::default()
            })
            .to_vec();
    };
    let looks = "tail -n +2 /proc/$$/limits | cut -c27-67 | tr -s ' '";
    let told = |limit: u64| match limit {
        u64::MAX => "unlimited".to_owned(),
        limit => limit.to_string(),
    };
    let expected = limits.map(|(_, soft, hard)| [told(soft), told(hard)]);
    let mut other = process(looks);
    all(&mut other);
    for seen in [
        guest.output(with_process(all, looks)).await,
        guest.exec(beside, other).await.output,
    ] {
        let seen: Vec<Vec<&str>> = seen
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(seen, expected);
    }
}

/// Where an exec begins, and where it ends up; without an end it stays.
async fn begins_where_it_is_told(guest: &Guest, id: &str) {
    let count = guest.exec(id, process("nproc")).await.output;
    // A host that is no guest may have only one.
    let last = if !guest.is_machine && count == "1" {
        "0"
    } else {
        "1"
    };
    for (initial, end, seen) in [
        ("0", last, last),
        (last, "0", "0"),
        (last, "", last),
        ("", last, last),
    ] {
        let mut pinned = process("taskset -cp $$ | sed s,.*:.,,");
        pinned.exec_cpu_affinity = Some(oci::ExecCPUAffinity {
            initial: initial.into(),
            final_: end.into(),
            ..Default::default()
        })
        .into();
        assert_eq!(
            guest.exec(id, pinned).await.output,
            seen,
            "from {initial:?} to {end:?}"
        );
    }
}

on_every_backend! {
    /// Conformance: oci process.cwd
    /// Conformance: oci process.env
    /// Conformance: oci process.rlimits
    /// Conformance: oci process.capabilities
    /// Conformance: oci process.noNewPrivileges
    /// Conformance: oci process.oomScoreAdj
    /// Conformance: oci process.scheduler
    /// Conformance: oci process.ioPriority
    /// Conformance: oci process.execCPUAffinity
    /// Conformance: oci process.user.uid
    /// Conformance: oci process.user.additionalGids
    /// Conformance: oci process.user.umask
    /// Conformance: oci process.user.username
    /// Conformance: oci process.args
    async fn a_process_is_what_its_specification_says(bed: Bed) {
        let guest = Guest::boot_of(&bed, bed.idle().vcpus(2)).await;
        assert_eq!(guest.output(with_process(furnished, LOOKS)).await, SEEN, "a first process");
        let id = guest.idle(spec("")).await;
        let mut beside = process(LOOKS);
        furnished(&mut beside);
        let ran = guest.exec(&id, beside).await;
        assert_eq!((ran.status, ran.output.as_str()), (0, SEEN), "one beside it");

        // Where the specification is silent: root with everything, and the mask that others have.
        let plain = "id -u; umask; grep CapBnd /proc/self/status | grep -c 0000; nice";
        assert_eq!(guest.output(spec(plain)).await, "0\n0022\n1\n0");

        // A user by name, with the groups that list it.
        guest.shell("echo 'web:x:33:34::/srv:/bin/sh' >>/etc/passwd; echo 'extra:x:77:web' >>/etc/group").await;
        let named = |process: &mut oci::Process| process.user.mut_or_insert_default().username = "web".into();
        assert_eq!(guest.output(with_process(named, "id -u; id -g; id -G; echo $HOME")).await, "33\n34\n34 77\n/srv");
        let unknown = with_process(|process| process.user.mut_or_insert_default().username = "nobody2".into(), "true");
        guest.refused_as(unknown, FailureKind::NoSuchUser, "nobody2").await;

        // The working directory is made for a first process, and not for others.
        let made = with_process(|process| process.cwd = "/srv/made/for".into(), "pwd");
        assert_eq!(guest.output(made).await, "/srv/made/for");

        // Programs are looked for in the container's PATH, and in no other.
        let found = with_process(|process| {
            process.args = words(&["whoami-script"]);
            process.env = words(&["PATH=/opt:/bin"]);
        }, "");
        guest.shell("printf '#!/bin/sh\necho by $0 >/results/found' >/opt/whoami-script && chmod 755 /opt/whoami-script").await;
        assert_eq!(guest.run(found).await.status, 0);
        assert_eq!(guest.result("found").await, "by /opt/whoami-script");

        has_every_limit(&guest, &id).await;
        begins_where_it_is_told(&guest, &id).await;
        guest.stop().await;
    }

    /// Conformance: oci process.terminal
    /// Conformance: oci process.consoleSize
    async fn a_terminal_is_the_containers_own(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let terminal = |process: &mut oci::Process| {
            process.terminal = true;
            process.console_size = Some(oci::Box { height: 33, width: 133, ..Default::default() }).into();
        };
        // The results are redirected, so the terminal is asked through standard input.
        let looks = "stty size; tty; stat -c %u $(tty); ls -l /dev/console | cut -c1; cut -d' ' -f7 /proc/$$/stat; : >/dev/tty && echo opened";
        let spec = with_process(terminal, looks);
        assert_eq!(guest.output(spec).await, "33 133\n/dev/pts/0\n0\nc\n34816\nopened");
        let id = guest.idle(guest::spec("")).await;
        let mut beside = process("stty size; tty; stat -c %u $(tty)");
        terminal(&mut beside);
        beside.user.mut_or_insert_default().uid = 5;
        assert_eq!(guest.exec(&id, beside).await.output, "33 133\n/dev/pts/0\n5");
        guest.stop().await;
    }

    /// Conformance: oci process.apparmorProfile
    /// Conformance: oci process.selinuxLabel
    async fn what_a_process_cannot_be_is_refused_by_its_field(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let process_with = |change: &dyn Fn(&mut oci::Process)| with_process(change, "true");
        type Case<'a> = (&'a dyn Fn(&mut oci::Process), FailureKind, &'a str);
        let limit = |type_: &str, soft, hard| oci::POSIXRlimit { type_: type_.into(), soft, hard, ..Default::default() };
        let cases: [Case<'_>; 16] = [
            (&|p| p.args = words(&["/no/such"]), FailureKind::NotFound, "/no/such"),
            (&|p| p.args = words(&["/etc/passwd"]), FailureKind::NotExecutable, "/etc/passwd"),
            (&|p| p.args = words(&["a\0b"]), FailureKind::Invalid, "process.args[0]"),
            (&|p| p.env.push("A=\0".into()), FailureKind::Invalid, "process.env[1]"),
            (&|p| p.cwd = "tmp".into(), FailureKind::Invalid, "process.cwd"),
            (&|p| p.cwd = "/etc/passwd/x".into(), FailureKind::NoSuchDirectory, "/etc/passwd/x"),
            (&|p| p.rlimits = vec![limit("RLIMIT_X", 1, 1)], FailureKind::Invalid, "process.rlimits[0].type"),
            (&|p| p.rlimits = vec![limit("RLIMIT_CORE", 2, 1)], FailureKind::Invalid, "process.rlimits[0]"),
            (&|p| p.rlimits = vec![limit("RLIMIT_NOFILE", 1, 1 << 40)], FailureKind::Invalid, "process.rlimits[0]"),
            (
                &|p| p.capabilities.mut_or_insert_default().permitted = words(&["CAP_FLY"]),
                FailureKind::Invalid,
                "process.capabilities.permitted",
            ),
            (
                &|p| p.capabilities.mut_or_insert_default().ambient = words(&["CAP_KILL"]),
                FailureKind::Unsupported,
                "process.capabilities.ambient: CAP_KILL",
            ),
            (&|p| p.oom_score_adj = 5000, FailureKind::Invalid, "process.oomScoreAdj"),
            (
                &|p| p.scheduler.mut_or_insert_default().policy = "SCHED_X".into(),
                FailureKind::Invalid,
                "process.scheduler.policy",
            ),
            (
                &|p| p.io_priority.mut_or_insert_default().class = "IOPRIO_CLASS_X".into(),
                FailureKind::Invalid,
                "process.ioPriority.class",
            ),
            (&|p| p.user.mut_or_insert_default().umask = Some(0o1000), FailureKind::Invalid, "process.user.umask"),
            (&|p| p.selinux_label = "a:b".into(), FailureKind::Unsupported, "process.selinuxLabel"),
        ];
        for (change, kind, subject) in cases {
            guest.refused_as(process_with(change), kind, subject).await;
        }
        // A kernel with AppArmor has no such profile.
        let (_, told) = guest.refused_start(process_with(&|p| p.apparmor_profile = "no-such".into())).await;
        assert!(told.starts_with("process.apparmorProfile"), "{told}");
        // An environment of megabytes does not fit into a program's.
        let long = |p: &mut oci::Process| p.env.extend((0..30).map(|n| format!("A{n}={}", "x".repeat(100 << 10))));
        let (kind, told) = guest.refused_start(with_process(long, "true")).await;
        assert_eq!((kind, told.starts_with("process.args, process.env")), (FailureKind::Invalid, true), "{told}");
        let id = guest.idle(spec("")).await;
        let mut beside = process("true");
        long(&mut beside);
        let refused = guest.try_exec(&id, "long", beside).await;
        let Err(CallError::Failed { kind: FailureKind::Invalid, .. }) = refused else { panic!("{refused:?}") };
        guest.remove(&id).await;
        let user = StringUser { uid: "root".into(), gid: "no-group".into(), ..Default::default() };
        let refused = guest.try_create("u", spec("true"), Some(user)).await;
        let Err(CallError::Failed { kind: FailureKind::NoSuchGroup, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(guest.traces().await, before, "nothing is left");
        assert_eq!(guest.output(spec("echo goes on")).await, "goes on");
        guest.stop().await;
    }
}
