//! Device rules as an eBPF program of the type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! Owns the encoding of the instructions (bpf/standardization/instruction-set.rst). The program reads a
//! `struct bpf_cgroup_dev_ctx` (linux/bpf.h) and returns 1 to allow, 0 to deny. Must not know the kernel's
//! calls.
//!
//! ```text
//!  wanted = access; for each rule, the last first:
//!      another device? next rule
//!      allow: wanted &= !rule.access; nothing left? return 1
//!      deny:  wanted & rule.access?   return 0
//!  return 0
//! ```

use super::Rule;

/// Registers: the answer, the context, and what is read from it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operation codes: class, source, operation.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const MOVE: u8 = 0xb4;
pub(super) const MOVE_REGISTER: u8 = 0xbc;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
pub(super) const JUMP: u8 = 0x05;
pub(super) const JUMP_UNEQUAL: u8 = 0x56;
pub(super) const JUMP_ANY_BIT: u8 = 0x46;
pub(super) const EXIT: u8 = 0x95;

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u8,
    pub(super) target: u8,
    pub(super) source: u8,
    pub(super) offset: i16,
    pub(super) value: i32,
}

impl Instruction {
    /// As the kernel reads it: `struct bpf_insn`.
    fn encoded(self) -> u64 {
        let [offset_low, offset_high] = self.offset.to_ne_bytes();
        let [v0, v1, v2, v3] = self.value.to_ne_bytes();
        let registers = self.target | (self.source << 4);
        u64::from_ne_bytes([self.code, registers, offset_low, offset_high, v0, v1, v2, v3])
    }
}

fn with_value(code: u8, target: u8, value: i32) -> Instruction {
    Instruction {
        code,
        target,
        source: 0,
        offset: 0,
        value,
    }
}

fn load(target: u8, offset: i16) -> Instruction {
    Instruction {
        source: CONTEXT,
        offset,
        ..with_value(LOAD_WORD, target, 0)
    }
}

fn jump(code: u8, target: u8, value: i32, offset: i16) -> Instruction {
    Instruction {
        offset,
        ..with_value(code, target, value)
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [with_value(MOVE, ANSWER, i32::from(allow)), with_value(EXIT, 0, 0)]
}

/// The program of some rules, as the kernel reads it.
pub(super) fn of(rules: &[Rule]) -> Vec<u64> {
    instructions(rules)
        .into_iter()
        .map(Instruction::encoded)
        .collect()
}

pub(super) fn instructions(rules: &[Rule]) -> Vec<Instruction> {
    // The first word has the access above the kind.
    let mut program = vec![
        load(KIND, 0),
        Instruction {
            source: KIND,
            ..with_value(MOVE_REGISTER, WANTED, 0)
        },
        with_value(SHIFT_RIGHT, WANTED, 16),
        with_value(AND, KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(of_rule(rule));
    }
    program.extend(answer(false));
    program
}

fn of_rule(rule: &Rule) -> Vec<Instruction> {
    let access = i32::from(rule.access);
    let verdict = if rule.allow {
        // Left to ask for: on with the next rule.
        vec![with_value(AND, WANTED, !access), jump(JUMP_UNEQUAL, WANTED, 0, 2)]
    } else {
        vec![jump(JUMP_ANY_BIT, WANTED, access, 1), jump(JUMP, 0, 0, 2)]
    };
    let conditions = [
        (KIND, rule.kind.map(|kind| kind as i32)),
        (MAJOR, rule.major.map(u32::cast_signed)),
        (MINOR, rule.minor.map(u32::cast_signed)),
    ];
    let conditions = conditions
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)));
    // The verdict and its answer have four instructions: where the last condition leads when it fails.
    let unequal = |((register, value), behind)| jump(JUMP_UNEQUAL, register, value, behind);
    let mut code: Vec<_> = conditions.rev().zip(4..).map(unequal).collect();
    code.reverse();
    code.extend(verdict);
    code.extend(answer(rule.allow));
    code
}
