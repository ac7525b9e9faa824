use super::program::{self, Instruction};
use super::*;

fn given(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> oci::LinuxDeviceCgroup {
    oci::LinuxDeviceCgroup {
        allow,
        type_: kind.into(),
        major,
        minor,
        access: access.into(),
        ..Default::default()
    }
}

/// Runs a program as the kernel would, on an access to a device.
fn run(program: &[Instruction], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
    let context = [u32::from(access) << 16 | kind as u32, major, minor];
    let mut registers = [0_u32; 11];
    let mut at = 0;
    loop {
        let Instruction {
            code,
            target,
            source,
            offset,
            value,
        } = program[at];
        let from = registers[usize::from(source)];
        let register = &mut registers[usize::from(target)];
        let value = value.cast_unsigned();
        let mut jumps = false;
        match code {
            program::LOAD_WORD => *register = context[usize::try_from(offset).expect("inside") / 4],
            program::MOVE => *register = value,
            program::MOVE_REGISTER => *register = from,
            program::AND => *register &= value,
            program::SHIFT_RIGHT => *register >>= value,
            program::JUMP => jumps = true,
            program::JUMP_UNEQUAL => jumps = *register != value,
            program::JUMP_ANY_BIT => jumps = *register & value != 0,
            program::EXIT => return registers[0] == 1,
            other => panic!("instruction {other:#x}"),
        }
        at += 1;
        if jumps {
            at = at.checked_add_signed(isize::from(offset)).expect("forwards");
        }
    }
}

/// What the rules themselves say, without any program.
fn verdict(rules: &Rules, kind: Kind, access: u8, major: u32, minor: u32) -> bool {
    let allowed = |bit: u8| {
        let matches = |rule: &&Rule| {
            rule.kind.is_none_or(|own| own == kind)
                && rule.major.is_none_or(|own| own == major)
                && rule.minor.is_none_or(|own| own == minor)
                && rule.access & bit != 0
        };
        rules.0.iter().rev().find(matches).is_some_and(|rule| rule.allow)
    };
    [MAKE, READ, WRITE]
        .into_iter()
        .filter(|bit| access & bit != 0)
        .all(allowed)
}

fn rules(list: &[oci::LinuxDeviceCgroup]) -> Rules {
    Rules::of(list).expect("valid rules")
}

fn decide(list: &[oci::LinuxDeviceCgroup], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
    run(&program::instructions(&rules(list).0), kind, access, major, minor)
}

#[test]
fn the_rules_that_docker_writes_allow_the_default_devices_and_no_disk() {
    let docker = [
        given(false, "", 0, 0, "rwm"),
        given(true, "c", 1, 5, "rwm"),
        given(true, "c", 1, 3, "rwm"),
        given(true, "c", -1, -1, "m"),
        given(true, "b", -1, -1, "m"),
        given(true, "c", 136, -1, "rwm"),
    ];
    let decide = |kind, access, major, minor| decide(&docker, kind, access, major, minor);
    for (major, minor) in [(1, 3), (1, 5), (1, 9), (5, 0), (5, 2), (136, 7)] {
        assert!(
            decide(Kind::Character, EVERY_ACCESS, major, minor),
            "{major}:{minor}"
        );
    }
    assert!(decide(Kind::Block, MAKE, 8, 0) && decide(Kind::Character, MAKE, 10, 200));
    assert!(!decide(Kind::Block, READ, 8, 0));
    assert!(!decide(Kind::Block, MAKE | READ, 8, 0), "one part is not enough");
    assert!(!decide(Kind::Character, WRITE, 1, 1));
    assert!(!decide(Kind::Block, READ, 1, 3), "the number of another kind");
}

/// Whatever the rules are, nodes can be made and the default devices used, as with runc; without rules, no more than that.
#[test]
fn without_rules_only_the_default_devices_are_allowed() {
    let none = Rules::without_any();
    assert_eq!(none, rules(&[]));
    for rules in [none, rules(&[given(false, "", 0, 0, "rwm")])] {
        let decide =
            |kind, access, major, minor| run(&program::instructions(&rules.0), kind, access, major, minor);
        for minor in [3, 5, 7, 8, 9] {
            assert!(decide(Kind::Character, EVERY_ACCESS, 1, minor), "{minor}");
        }
        for kind in [Kind::Block, Kind::Character] {
            assert!(decide(kind, MAKE, 254, 0));
            assert!(!decide(kind, READ, 254, 0) && !decide(kind, WRITE, 254, 0));
        }
        assert!(!decide(Kind::Character, READ, 1, 1), "the memory");
    }
}

#[test]
fn devices_of_a_specification_are_allowed_unless_its_rules_deny_them() {
    let decide = |list: &[oci::LinuxDeviceCgroup], access| {
        let mut rules = rules(list);
        rules.allow_before(true, (8, 0));
        run(&program::instructions(&rules.0), Kind::Block, access, 8, 0)
    };
    assert!(decide(&[], READ | WRITE));
    assert!(decide(&[given(true, "c", 10, 229, "rw")], READ | WRITE));
    assert!(!decide(&[given(false, "b", 8, -1, "w")], WRITE));
    assert!(decide(&[given(false, "b", 8, -1, "w")], READ));
    assert!(!decide(&[given(false, "a", -1, -1, "rwm")], READ));
    assert!(decide(&[given(true, "a", -1, -1, "rwm")], READ));
}

#[test]
fn a_given_device_takes_the_place_of_its_former_numbers_and_of_no_default() {
    let mut rules = rules(&[given(false, "", 0, 0, "rwm"), given(true, "b", 8, 3, "r")]);
    rules.allow(true, (254, 1), Some((8, 3)));
    rules.allow(false, (10, 7), Some((1, 5)));
    let decide =
        |kind, access, major, minor| run(&program::instructions(&rules.0), kind, access, major, minor);
    assert!(decide(Kind::Block, READ, 254, 1) && !decide(Kind::Block, WRITE, 254, 1));
    assert!(!decide(Kind::Block, READ, 8, 3));
    assert!(decide(Kind::Character, WRITE, 10, 7) && decide(Kind::Character, WRITE, 1, 5));
}

#[test]
fn the_last_rule_that_matches_decides_for_each_part_of_an_access() {
    let list = [
        given(true, "a", -1, -1, "rwm"),
        given(false, "b", 8, -1, "w"),
        given(true, "b", 8, 1, "w"),
    ];
    let decide = |access, minor| decide(&list, Kind::Block, access, 8, minor);
    assert!(decide(READ, 0) && decide(READ | WRITE, 1));
    assert!(!decide(WRITE, 0) && !decide(READ | WRITE, 0));
}

/// Every program decides as its rules do, for accesses at and around each number of the rules.
#[test]
fn a_program_decides_as_its_rules() {
    let kinds = [None, Some(Kind::Block), Some(Kind::Character)];
    let numbers = [None, Some(0), Some(8), Some(u32::MAX)];
    // A generator of numbers that is the same on every run (Knuth's MMIX).
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    for _ in 0..500 {
        let list = (0..random(6)).map(|_| Rule {
            allow: random(2) == 0,
            kind: kinds[random(3)],
            major: numbers[random(4)],
            minor: numbers[random(4)],
            access: u8::try_from(1 + random(7)).expect("three bits"),
        });
        let rules = Rules(list.collect());
        let program = program::instructions(&rules.0);
        for kind in [Kind::Block, Kind::Character] {
            for access in 1..=EVERY_ACCESS {
                for (major, minor) in [(0, 0), (8, 0), (8, u32::MAX), (u32::MAX, 8), (9, 9)] {
                    let expected = verdict(&rules, kind, access, major, minor);
                    assert_eq!(
                        run(&program, kind, access, major, minor),
                        expected,
                        "{rules:?} {kind:?} {access} {major}:{minor}"
                    );
                }
            }
        }
    }
}

#[test]
fn everything_allowed_is_known_and_hides_what_stood_before() {
    let all = given(true, "a", -1, -1, "rwm");
    assert!(rules(&[given(false, "b", 8, 0, "w"), all.clone()]).allow_everything());
    assert!(!rules(&[all, given(false, "b", 8, 0, "w")]).allow_everything());
    assert!(!rules(&[given(false, "a", 0, 0, "rwm")]).allow_everything());
}

#[test]
fn a_rule_without_meaning_is_named() {
    for (rule, subject) in [
        (given(true, "p", 1, 1, "r"), "devices[1].type: \"p\""),
        (given(true, "c", -2, 1, "r"), "devices[1].major: -2"),
        (given(true, "c", 1, 1 << 32, "r"), "devices[1].minor: 4294967296"),
        (given(true, "c", 1, 1, "rx"), "devices[1].access: \"rx\""),
        (given(true, "c", 1, 1, ""), "devices[1].access: \"\""),
    ] {
        let failed = Rules::of(&[given(false, "a", -1, -1, "rwm"), rule]).expect_err("invalid");
        assert_eq!(
            (failed.kind, failed.subject.as_str()),
            (FailureKind::Invalid, subject)
        );
    }
    let many = vec![given(true, "c", 1, 1, "r"); RULES_MAX + 1];
    assert!(Rules::of(&many).is_err());
}

/// The kernel's own check: it takes the programs, also the longest. Where nobody may load any, the tests of
/// whole containers are skipped, too.
#[test]
fn the_kernel_takes_the_programs() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "loading programs needs root"
        );
        eprintln!("SKIPPED the_kernel_takes_the_programs: needs root");
        return;
    }
    let different = |index: usize| {
        let number = i64::try_from(index).expect("small");
        given(index.is_multiple_of(2), "b", 10 + number % 7, number, "rw")
    };
    let most: Vec<_> = (0..RULES_MAX).map(different).collect();
    for list in [
        vec![],
        vec![given(true, "a", -1, -1, "rwm")],
        vec![given(false, "a", -1, -1, "rwm")],
        most,
    ] {
        let program = program::of(&rules(&list).0);
        sys::load_device_program(&program).unwrap_or_else(|error| panic!("{} rules: {error}", list.len()));
    }
}
