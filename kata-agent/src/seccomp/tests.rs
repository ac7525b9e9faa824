use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// What a filter answers, by running it as the kernel does (filter.rst).
fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [number.to_le_bytes(), architecture.to_le_bytes()].concat();
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    let (mut at, mut loaded) = (0, 0_u32);
    loop {
        let code = filter.instructions[at];
        let (if_true, if_false) = ((code >> 16 & 0xff) as usize, (code >> 24 & 0xff) as usize);
        let operand = u32::try_from(code >> 32).expect("a half");
        at += 1;
        let holds = match code & 0xffff {
            0x20 => {
                let offset = operand as usize;
                loaded = u32::from_le_bytes(data[offset..offset + 4].try_into().expect("four bytes"));
                continue;
            }
            0x54 => {
                loaded &= operand;
                continue;
            }
            0x05 => {
                at += operand as usize;
                continue;
            }
            0x06 => return operand,
            0x15 => loaded == operand,
            0x25 => loaded > operand,
            0x35 => loaded >= operand,
            other => panic!("instruction {other:#x}"),
        };
        at += if holds { if_true } else { if_false };
    }
}

fn rule(names: &[&str], action: &str, args: &[(u64, u64, u64, &str)]) -> oci::LinuxSyscall {
    oci::LinuxSyscall {
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
    }
}

fn profile(default: &str, syscalls: Vec<oci::LinuxSyscall>) -> oci::LinuxSeccomp {
    oci::LinuxSeccomp {
        default_action: default.into(),
        syscalls,
        ..Default::default()
    }
}

fn native(filter: &Filter, name: &str, first: u64) -> u32 {
    let number = table::number(name, Architecture::X86_64).expect("a system call");
    run(filter, X86_64, number, [first, 0, 0, 0, 0, 0])
}

#[test]
fn every_call_of_a_profile_has_its_answer_and_others_the_default() {
    let allowed = ["read", "write", "close", "mseal", "execve", "clone3", "nosuch"];
    let mut denied = rule(&["mkdir"], "SCMP_ACT_ERRNO", &[]);
    denied.set_errnoret(30);
    let rules = vec![
        rule(&allowed, "SCMP_ACT_ALLOW", &[]),
        denied,
        rule(&["ptrace"], "SCMP_ACT_KILL_PROCESS", &[]),
        rule(&["chmod"], "SCMP_ACT_TRAP", &[]),
        rule(&["chown"], "SCMP_ACT_LOG", &[]),
        rule(&["mount"], "SCMP_ACT_KILL", &[]),
        rule(&["sync"], "SCMP_ACT_TRACE", &[]),
    ];
    let filter = Filter::of(&profile("SCMP_ACT_ERRNO", rules)).expect("a filter");
    for line in include_str!("x86.txt").lines() {
        let name = line.split(' ').next().expect("a name");
        let Some(number) = table::number(name, Architecture::X86_64) else {
            continue;
        };
        let expected = match name {
            "mkdir" => answer::ERRNO | 30,
            "ptrace" => answer::KILL_PROCESS,
            "chmod" => answer::TRAP,
            "chown" => answer::LOG,
            "mount" => answer::KILL_THREAD,
            "sync" => answer::TRACE | 1,
            _ if allowed.contains(&name) => answer::ALLOW,
            _ if number > 462 => answer::ERRNO | 38,
            _ => answer::ERRNO | 1,
        };
        assert_eq!(run(&filter, X86_64, number, [0; 6]), expected, "{name}");
    }
}

#[test]
fn what_is_newer_than_a_profile_does_not_exist_where_the_default_is_an_error() {
    let filter = |default: &str, errno| {
        let mut profile = profile(default, vec![rule(&["read"], "SCMP_ACT_ALLOW", &[])]);
        profile.default_errno_ret = errno;
        Filter::of(&profile).expect("a filter")
    };
    assert_eq!(
        native(&filter("SCMP_ACT_ERRNO", Some(5)), "write", 0),
        answer::ERRNO | 38
    );
    assert_eq!(
        native(&filter("SCMP_ACT_KILL_PROCESS", None), "write", 0),
        answer::KILL_PROCESS
    );
    assert_eq!(native(&filter("SCMP_ACT_ALLOW", None), "write", 0), answer::ALLOW);
}

/// An operator with its two values; arguments that it holds for, and others.
type Comparison<'a> = (&'a str, u64, u64, &'a [u64], &'a [u64]);

#[test]
fn conditions_compare_all_64_bits() {
    let big = 0x1_0000_0005_u64;
    let cases: [Comparison<'_>; 7] = [
        ("SCMP_CMP_EQ", big, 0, &[big], &[5, big + 1, 0x2_0000_0005]),
        ("SCMP_CMP_NE", big, 0, &[5, big + 1, 0x2_0000_0005], &[big]),
        (
            "SCMP_CMP_LT",
            big,
            0,
            &[0, 6, big - 1],
            &[big, big + 1, 0x2_0000_0000],
        ),
        ("SCMP_CMP_LE", big, 0, &[0, 6, big], &[big + 1, 0x2_0000_0000]),
        ("SCMP_CMP_GT", big, 0, &[big + 1, 0x2_0000_0000], &[big, 6, 0]),
        ("SCMP_CMP_GE", big, 0, &[big, 0x2_0000_0000], &[big - 1, 6, 0]),
        (
            "SCMP_CMP_MASKED_EQ",
            0xf_0000_000f,
            big,
            &[big, 0x11_0000_0015],
            &[5, big + 1, 0x3_0000_0005],
        ),
    ];
    for (operator, value, value_two, yes, no) in cases {
        let rules = vec![rule(
            &["personality"],
            "SCMP_ACT_ALLOW",
            &[(0, value, value_two, operator)],
        )];
        let filter = Filter::of(&profile("SCMP_ACT_ERRNO", rules)).expect("a filter");
        for argument in yes {
            assert_eq!(
                native(&filter, "personality", *argument),
                answer::ALLOW,
                "{operator} {argument:#x}"
            );
        }
        for argument in no {
            assert_eq!(
                native(&filter, "personality", *argument),
                answer::ERRNO | 1,
                "{operator} {argument:#x}"
            );
        }
    }
}

#[test]
fn conditions_on_several_arguments_are_all_meant_and_on_one_argument_any() {
    let equal = "SCMP_CMP_EQ";
    let rules = vec![
        rule(
            &["socket"],
            "SCMP_ACT_ALLOW",
            &[(0, 1, 0, equal), (1, 2, 0, equal)],
        ),
        rule(
            &["personality"],
            "SCMP_ACT_ALLOW",
            &[(0, 7, 0, equal), (0, 8, 0, equal)],
        ),
        rule(&["personality"], "SCMP_ACT_KILL", &[(0, 9, 0, equal)]),
    ];
    let filter = Filter::of(&profile("SCMP_ACT_ERRNO", rules)).expect("a filter");
    let socket = |first, second| run(&filter, X86_64, 41, [first, second, 0, 0, 0, 0]);
    assert_eq!(socket(1, 2), answer::ALLOW);
    assert_eq!([socket(1, 3), socket(2, 2)], [answer::ERRNO | 1; 2]);
    let answers = [7, 8, 9, 10].map(|domain| native(&filter, "personality", domain));
    assert_eq!(
        answers,
        [
            answer::ALLOW,
            answer::ALLOW,
            answer::KILL_THREAD,
            answer::ERRNO | 1
        ]
    );
}

#[test]
fn a_rule_with_conditions_comes_before_one_without() {
    let rules = vec![
        rule(&["personality"], "SCMP_ACT_ALLOW", &[]),
        rule(&["personality"], "SCMP_ACT_KILL", &[(0, 9, 0, "SCMP_CMP_EQ")]),
        rule(&["personality"], "SCMP_ACT_TRAP", &[]),
    ];
    let filter = Filter::of(&profile("SCMP_ACT_ERRNO", rules)).expect("a filter");
    assert_eq!(native(&filter, "personality", 9), answer::KILL_THREAD);
    assert_eq!(native(&filter, "personality", 1), answer::ALLOW);
}

#[test]
fn only_the_architectures_of_a_profile_run() {
    let mut profile = profile("SCMP_ACT_ALLOW", vec![rule(&["execve"], "SCMP_ACT_TRAP", &[])]);
    let filter = Filter::of(&profile).expect("a filter");
    let answers = |filter: &Filter| {
        [
            (X86_64, 59),
            (X86, 11),
            (X86_64, 0x4000_0000 | 520),
            (0xc000_00b7, 221),
        ]
        .map(|(architecture, number)| run(filter, architecture, number, [0; 6]))
    };
    let (trap, kill) = (answer::TRAP, answer::KILL_PROCESS);
    assert_eq!(answers(&filter), [trap, kill, kill, kill]);
    profile.architectures = [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_ARM",
    ]
    .map(String::from)
    .to_vec();
    let filter = Filter::of(&profile).expect("a filter");
    assert_eq!(answers(&filter), [trap, trap, trap, kill]);
    assert_eq!(run(&filter, X86, 59, [0; 6]), answer::ALLOW);
}

#[track_caller]
fn refused(profile: &oci::LinuxSeccomp, kind: FailureKind, field: &str) {
    let failed = Filter::of(profile).expect_err("refused");
    assert_eq!(failed.kind, kind, "{failed}");
    assert!(
        failed.subject.starts_with(&format!("linux.seccomp.{field}")),
        "{failed}"
    );
}

#[test]
fn what_is_not_known_or_not_possible_is_refused_by_the_field() {
    let one = |rule| profile("SCMP_ACT_ALLOW", vec![rule]);
    let (invalid, unsupported) = (FailureKind::Invalid, FailureKind::Unsupported);
    refused(&profile("", vec![]), invalid, "defaultAction");
    refused(&profile("SCMP_ACT_NOTIFY", vec![]), unsupported, "defaultAction");
    refused(
        &one(rule(&[], "SCMP_ACT_KILL", &[])),
        invalid,
        "syscalls[0].names",
    );
    refused(&one(rule(&["read"], "KILL", &[])), invalid, "syscalls[0].action");
    let condition = |index, op| one(rule(&["read"], "SCMP_ACT_KILL", &[(index, 0, 0, op)]));
    refused(&condition(6, "SCMP_CMP_EQ"), invalid, "syscalls[0].args[0].index");
    refused(&condition(0, "=="), invalid, "syscalls[0].args[0].op");
    let mut with_errno = rule(&["read"], "SCMP_ACT_ALLOW", &[]);
    with_errno.set_errnoret(5);
    refused(&one(with_errno), invalid, "syscalls[0].action");
    let with = |change: fn(&mut oci::LinuxSeccomp)| {
        let mut profile = profile("SCMP_ACT_ALLOW", vec![]);
        change(&mut profile);
        profile
    };
    refused(
        &with(|profile| profile.architectures.push("SCMP_ARCH_PDP11".into())),
        invalid,
        "architectures[0]",
    );
    refused(
        &with(|profile| profile.flags.push("FAST".into())),
        invalid,
        "flags[0]",
    );
    refused(
        &with(|profile| profile.listener_path = "/l".into()),
        unsupported,
        "listenerPath",
    );
    let many: Vec<_> = (0..2000)
        .map(|value| rule(&["read"], "SCMP_ACT_KILL", &[(0, value, 0, "SCMP_CMP_EQ")]))
        .collect();
    refused(&profile("SCMP_ACT_ALLOW", many), invalid, "syscalls: ");
}

#[test]
fn the_kernel_takes_the_program() {
    let mut wide = rule(
        &["personality"],
        "SCMP_ACT_ERRNO",
        &[(0, 0xdead, 0, "SCMP_CMP_EQ")],
    );
    wide.set_errnoret(30);
    let mut profile = profile("SCMP_ACT_ALLOW", vec![wide]);
    profile.flags = vec![
        "SECCOMP_FILTER_FLAG_LOG".into(),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW".into(),
    ];
    let filter = Filter::of(&profile).expect("a filter");
    // A filter stays with its thread.
    let told = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).expect("set");
        filter.load().expect("loaded");
        [0xdead, 0].map(|domain| sys::set_personality(domain).map_err(|error| error.raw_os_error()))
    });
    assert_eq!(told.join().expect("told"), [Err(Some(30)), Ok(())]);
}
