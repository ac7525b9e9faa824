//! A filter as instructions of classic BPF (Documentation/networking/filter.rst, linux/seccomp.h).
//!
//! Owns the program's form: the architecture first, then the number of the system call by halves, then conditions. Must
//! not know the words of a profile.

use std::collections::BTreeMap;

use super::answer;
use super::table::{Architecture, X32_BIT};

/// Offsets in a `struct seccomp_data`; an argument has its low half first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Codes of instructions (linux/bpf_common.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual { mask: u64 },
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// An answer, where all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) answer: u32,
}

/// What holds on an architecture.
pub(super) struct Section {
    pub(super) architecture: Architecture,
    /// The answer where no rule has one.
    pub(super) default: u32,
    pub(super) calls: BTreeMap<u32, Vec<Rule>>,
    /// The first number that does not exist.
    pub(super) newer: Option<u32>,
}

/// An instruction as the kernel's struct sock_filter, of which the code is the lowest part.
fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> u64 {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
}

fn load(offset: u32) -> u64 {
    instruction(LOAD, 0, 0, offset)
}

fn answer(answer: u32) -> u64 {
    instruction(RETURN, 0, 0, answer)
}

/// The operand of a jump; no filter is that long.
fn distance(code: &[u64]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// One of two pieces of code, by a comparison with what is loaded: `yes` stands first.
fn either(comparison: u16, operand: u32, yes: &[u64], no: &[u64]) -> Vec<u64> {
    let skip = instruction(JUMP, 0, 0, distance(yes));
    let mut code = vec![instruction(comparison, 1, 0, operand), skip];
    code.extend(yes);
    code.extend(no);
    code
}

/// The whole filter. An architecture without a section is the end of the process.
pub(super) fn write(sections: &[Section]) -> Vec<u64> {
    let section = |architecture| {
        let found = sections
            .iter()
            .find(|section| section.architecture == architecture);
        found.map_or_else(|| vec![answer(answer::KILL_PROCESS)], write_section)
    };
    let native = either(
        IF_GREATER_OR_EQUAL,
        X32_BIT,
        &section(Architecture::X32),
        &section(Architecture::X86_64),
    );
    let native = [vec![load(NUMBER)], native].concat();
    let older = [vec![load(NUMBER)], section(Architecture::X86)].concat();
    let unknown = [answer(answer::KILL_PROCESS)];
    let older = either(IF_EQUAL, Architecture::X86.audit_number(), &older, &unknown);
    let all = either(IF_EQUAL, Architecture::X86_64.audit_number(), &native, &older);
    [vec![load(ARCHITECTURE)], all].concat()
}

/// The numbers as ranges in which the same code runs, from the lowest on.
fn ranges(section: &Section) -> Vec<(u32, Vec<u64>)> {
    let default = vec![answer(section.default)];
    let mut ranges = vec![(0, default.clone())];
    let mut add = |begin: u32, code: Vec<u64>| match ranges.last_mut() {
        Some((last, before)) if *last == begin => *before = code,
        _ => ranges.push((begin, code)),
    };
    for (number, rules) in &section.calls {
        add(*number, write_rules(rules, section.default));
        add(number + 1, default.clone());
    }
    if let Some(newer) = section.newer {
        add(newer, vec![answer(answer::ERRNO | libc::ENOSYS.cast_unsigned())]);
    }
    ranges.dedup_by(|next, before| next.1 == before.1);
    ranges
}

/// The number is loaded.
fn write_section(section: &Section) -> Vec<u64> {
    by_halves(&ranges(section))
}

fn by_halves(ranges: &[(u32, Vec<u64>)]) -> Vec<u64> {
    match ranges {
        [] => Vec::new(),
        [(_, code)] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let begin = high.first().map_or(0, |(begin, _)| *begin);
            either(IF_GREATER_OR_EQUAL, begin, &by_halves(high), &by_halves(low))
        }
    }
}

fn write_rules(rules: &[Rule], default: u32) -> Vec<u64> {
    let mut code: Vec<u64> = rules.iter().flat_map(write_rule).collect();
    if rules.last().is_none_or(|last| !last.conditions.is_empty()) {
        code.push(answer(default));
    }
    code
}

/// Answers where all conditions hold, and goes on behind itself otherwise.
fn write_rule(rule: &Rule) -> Vec<u64> {
    let mut steps: Vec<Step> = rule.conditions.iter().flat_map(|one| one.steps()).collect();
    steps.push(Step::plain(RETURN, rule.answer));
    let count = steps.len();
    let target = |target: Target, at: usize| match target {
        Target::Skip(steps) => steps,
        // A rule has six conditions at most, of six steps at most.
        Target::Fail => u8::try_from(count - at - 1).unwrap_or(u8::MAX),
    };
    let steps = steps.iter().enumerate();
    steps
        .map(|(at, step)| {
            let (if_true, if_false) = (target(step.if_true, at), target(step.if_false, at));
            instruction(step.code, if_true, if_false, step.operand)
        })
        .collect()
}

/// Where a comparison leads.
#[derive(Debug, Clone, Copy)]
enum Target {
    Skip(u8),
    /// Behind the rule.
    Fail,
}

struct Step {
    code: u16,
    operand: u32,
    if_true: Target,
    if_false: Target,
}

const NEXT: Target = Target::Skip(0);

impl Step {
    fn plain(code: u16, operand: u32) -> Self {
        Self::branch(code, operand, NEXT, NEXT)
    }

    fn branch(code: u16, operand: u32, if_true: Target, if_false: Target) -> Self {
        Step {
            code,
            operand,
            if_true,
            if_false,
        }
    }
}

impl Condition {
    /// Goes on where it holds. The machine compares 32 bits, so the high halves decide first.
    fn steps(self) -> Vec<Step> {
        let at = ARGUMENTS + 8 * u32::from(self.argument);
        let (low, high) = halves(self.value);
        let (load_low, load_high) = (Step::plain(LOAD, at), Step::plain(LOAD, at + 4));
        let holds = Target::Skip;
        match self.operator {
            Operator::Equal => vec![
                load_high,
                Step::branch(IF_EQUAL, high, NEXT, Target::Fail),
                load_low,
                Step::branch(IF_EQUAL, low, NEXT, Target::Fail),
            ],
            Operator::NotEqual => vec![
                load_high,
                Step::branch(IF_EQUAL, high, NEXT, holds(2)),
                load_low,
                Step::branch(IF_EQUAL, low, Target::Fail, NEXT),
            ],
            Operator::Greater | Operator::GreaterOrEqual => vec![
                load_high,
                Step::branch(IF_GREATER, high, holds(3), NEXT),
                Step::branch(IF_EQUAL, high, NEXT, Target::Fail),
                load_low,
                Step::branch(self.operator.or_equal(), low, NEXT, Target::Fail),
            ],
            Operator::Less | Operator::LessOrEqual => vec![
                load_high,
                Step::branch(IF_GREATER, high, Target::Fail, NEXT),
                Step::branch(IF_EQUAL, high, NEXT, holds(2)),
                load_low,
                Step::branch(self.operator.or_equal(), low, Target::Fail, NEXT),
            ],
            Operator::MaskedEqual { mask } => {
                let (mask_low, mask_high) = halves(mask);
                vec![
                    load_high,
                    Step::plain(AND, mask_high),
                    Step::branch(IF_EQUAL, high, NEXT, Target::Fail),
                    load_low,
                    Step::plain(AND, mask_low),
                    Step::branch(IF_EQUAL, low, NEXT, Target::Fail),
                ]
            }
        }
    }
}

impl Operator {
    /// The comparison of the low halves: where the whole is greater or equal it is not less.
    fn or_equal(self) -> u16 {
        match self {
            Operator::GreaterOrEqual | Operator::Less => IF_GREATER_OR_EQUAL,
            _ => IF_GREATER,
        }
    }
}

/// The low and the high half.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
