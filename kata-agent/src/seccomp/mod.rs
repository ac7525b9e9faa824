//! Filters of system calls: a profile of the OCI runtime specification as a program for the kernel.
//!
//! ```text
//!  oci::LinuxSeccomp ──Filter::of (pure)──► Filter ──load (in the process, right before its program)──► kernel
//! ```
//!
//! Owns the words of a profile (config-linux.md#seccomp, which are libseccomp's) and their meaning, which is runc's where
//! the specification leaves it open: names of system calls that are not known are ignored, several conditions on one
//! argument are alternatives, and of a profile that answers with an error, system calls newer than all that it names do
//! not exist (`ENOSYS`), so that a C library falls back. Of several rules for a system call those with conditions come
//! first, each in the order given. Must not know containers.

mod program;
mod table;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;

use kata_agent_proto::{Failed, FailureKind, oci};
use serde::{Deserialize, Serialize};

use crate::sys;
use program::{Condition, Rule, Section};
use table::Architecture;

/// `SECCOMP_RET_*` (linux/seccomp.h).
mod answer {
    pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(super) const KILL_THREAD: u32 = 0;
    pub(super) const TRAP: u32 = 0x0003_0000;
    pub(super) const ERRNO: u32 = 0x0005_0000;
    pub(super) const TRACE: u32 = 0x7ff0_0000;
    pub(super) const LOG: u32 = 0x7ffc_0000;
    pub(super) const ALLOW: u32 = 0x7fff_0000;
}

/// Largest error number that a system call can answer.
const ERRNO_MAX: u32 = 4095;

/// Most instructions of a filter (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

/// A profile as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    instructions: Vec<u64>,
    flags: u32,
}

impl Filter {
    /// The filter of a profile.
    ///
    /// # Errors
    /// Unsupported for what needs a supervisor, invalid for words that libseccomp does not know; by the field.
    pub(crate) fn of(profile: &oci::LinuxSeccomp) -> Result<Self, Failed> {
        if !profile.listener_path.is_empty() {
            return Err(unsupported("listenerPath", "nobody in a guest could listen"));
        }
        let default = action(
            "defaultAction",
            &profile.default_action,
            profile.default_errno_ret,
        )?;
        let rules = Rules::of(profile)?;
        let architectures = architectures(&profile.architectures)?;
        let sections: Vec<Section> = architectures
            .into_iter()
            .map(|architecture| rules.section(architecture, default))
            .collect();
        let instructions = program::write(&sections);
        if instructions.len() > INSTRUCTIONS_MAX {
            let count = instructions.len();
            return Err(invalid(
                "syscalls",
                format_args!("{count} instructions, of which {INSTRUCTIONS_MAX} are possible"),
            ));
        }
        Ok(Filter {
            instructions,
            flags: flags(&profile.flags)?,
        })
    }

    /// Holds this process to the filter from here on.
    pub(crate) fn load(&self) -> io::Result<()> {
        sys::load_filter(&self.instructions, self.flags)
    }
}

fn invalid(field: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Invalid, format!("linux.seccomp.{field}: {what}"))
}

fn unsupported(field: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Unsupported, format!("linux.seccomp.{field}: {what}"))
}

/// An action with the error number that belongs to it.
fn action(field: &str, word: &str, errno: Option<u32>) -> Result<u32, Failed> {
    let number = errno.unwrap_or(libc::EPERM.cast_unsigned());
    if number > ERRNO_MAX {
        return Err(invalid(field, format_args!("error number {number}")));
    }
    let (answer, takes_number) = match word {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => (answer::KILL_THREAD, false),
        "SCMP_ACT_KILL_PROCESS" => (answer::KILL_PROCESS, false),
        "SCMP_ACT_TRAP" => (answer::TRAP, false),
        "SCMP_ACT_ERRNO" => (answer::ERRNO | number, true),
        "SCMP_ACT_TRACE" => (answer::TRACE | number, true),
        "SCMP_ACT_LOG" => (answer::LOG, false),
        "SCMP_ACT_ALLOW" => (answer::ALLOW, false),
        "SCMP_ACT_NOTIFY" => {
            return Err(unsupported(
                field,
                "SCMP_ACT_NOTIFY: nobody in a guest could listen",
            ));
        }
        _ => return Err(invalid(field, format_args!("action {word:?}"))),
    };
    if errno.is_some_and(|number| number != 0) && !takes_number {
        return Err(invalid(field, format_args!("{word} with an error number")));
    }
    Ok(answer)
}

fn architectures(words: &[String]) -> Result<Vec<Architecture>, Failed> {
    // The machine's own is always one of them.
    let mut list = vec![Architecture::NATIVE];
    for (index, word) in words.iter().enumerate() {
        let known = Architecture::from_word(word);
        let one =
            known.ok_or_else(|| invalid(&format!("architectures[{index}]"), format_args!("{word:?}")))?;
        // What this machine cannot run needs no rules.
        if let Some(one) = one.filter(|one| !list.contains(one)) {
            list.push(one);
        }
    }
    Ok(list)
}

fn flags(words: &[String]) -> Result<u32, Failed> {
    let flag = |(index, word): (usize, &String)| match word.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(1),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(4),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
            let field = format!("flags[{index}]");
            Err(unsupported(
                &field,
                format_args!("{word}: nobody in a guest could listen"),
            ))
        }
        _ => Err(invalid(&format!("flags[{index}]"), format_args!("{word:?}"))),
    };
    words
        .iter()
        .enumerate()
        .try_fold(0, |all, word| Ok(all | flag(word)?))
}

/// The rules of a profile, by the name of the system call.
struct Rules<'a>(Vec<(&'a str, Rule)>);

impl<'a> Rules<'a> {
    fn of(profile: &'a oci::LinuxSeccomp) -> Result<Self, Failed> {
        let mut rules = Vec::new();
        for (index, given) in profile.syscalls.iter().enumerate() {
            let field = format!("syscalls[{index}]");
            if given.names.is_empty() {
                return Err(invalid(&format!("{field}.names"), "none"));
            }
            let errno = given.has_errnoret().then(|| given.errnoret());
            let answer = action(&format!("{field}.action"), &given.action, errno)?;
            let alternatives = alternatives(&field, &given.args)?;
            for name in &given.names {
                rules.extend(alternatives.iter().map(|conditions| {
                    let conditions = conditions.clone();
                    (name.as_str(), Rule { conditions, answer })
                }));
            }
        }
        Ok(Rules(rules))
    }

    /// What holds on an architecture, by number.
    fn section(&self, architecture: Architecture, default: u32) -> Section {
        let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for (name, rule) in &self.0 {
            if let Some(number) = table::number(name, architecture) {
                calls.entry(number).or_default().push(rule.clone());
            }
        }
        for rules in calls.values_mut() {
            rules.sort_by_key(|rule| rule.conditions.is_empty());
            if let Some(first) = rules.iter().position(|rule| rule.conditions.is_empty()) {
                rules.truncate(first + 1);
            }
        }
        let newer = match calls.keys().next_back() {
            Some(last) if is_errno(default) => Some(last + 1),
            _ => None,
        };
        Section {
            architecture,
            default,
            calls,
            newer,
        }
    }
}

fn is_errno(answer: u32) -> bool {
    answer & 0xffff_0000 == answer::ERRNO
}

/// The conditions of a rule: all of a list, or one each where an argument is named twice.
fn alternatives(field: &str, args: &[oci::LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, Failed> {
    let conditions = args
        .iter()
        .enumerate()
        .map(|(index, arg)| condition(&format!("{field}.args[{index}]"), arg))
        .collect::<Result<Vec<_>, _>>()?;
    let twice = |at: usize, one: &Condition| {
        conditions
            .iter()
            .skip(at + 1)
            .any(|other| other.argument == one.argument)
    };
    if conditions.iter().enumerate().any(|(at, one)| twice(at, one)) {
        return Ok(conditions.into_iter().map(|one| vec![one]).collect());
    }
    Ok(vec![conditions])
}

fn condition(field: &str, arg: &oci::LinuxSeccompArg) -> Result<Condition, Failed> {
    use program::Operator;
    let argument = u8::try_from(arg.index).ok().filter(|index| *index < 6);
    let argument = argument.ok_or_else(|| invalid(&format!("{field}.index"), arg.index))?;
    let (operator, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (Operator::NotEqual, arg.value),
        "SCMP_CMP_LT" => (Operator::Less, arg.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, arg.value),
        "SCMP_CMP_EQ" => (Operator::Equal, arg.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, arg.value),
        "SCMP_CMP_GT" => (Operator::Greater, arg.value),
        "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual { mask: arg.value }, arg.value_two),
        word => return Err(invalid(&format!("{field}.op"), format_args!("{word:?}"))),
    };
    Ok(Condition {
        argument,
        operator,
        value,
    })
}

#[cfg(test)]
mod tests;
