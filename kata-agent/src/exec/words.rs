//! Words of the OCI specification for limits, capabilities and scheduling, as numbers.
//!
//! Owns their spelling (getrlimit(2), capabilities(7), sched(7), ioprio_set(2), personality(2)). A word that is not known
//! is an error that names its field.

use std::fmt::Display;

use kata_agent_proto::{Failed, FailureKind, oci};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CpuSet};
use serde_json::Value;

use crate::spec::json::strings;
use crate::sys::Scheduling;

pub(super) fn invalid(field: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Invalid, format!("{field}: {what}"))
}

/// The five sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) bounding: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) inheritable: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

/// The sets of a specification; none where it says nothing about them.
pub(super) fn capabilities(sets: &Value) -> Result<Option<Capabilities>, Failed> {
    if !sets.is_object() {
        return Ok(None);
    }
    let set = |name: &str| {
        let words = strings(&sets[name]);
        words.iter().try_fold(CapabilitySet::empty(), |set, word| {
            let known = capability(word);
            let field = format!("process.capabilities.{name}");
            Ok::<_, Failed>(set | known.ok_or_else(|| invalid(&field, format_args!("{word:?}")))?)
        })
    };
    Ok(Some(Capabilities {
        bounding: set("bounding")?,
        effective: set("effective")?,
        permitted: set("permitted")?,
        inheritable: set("inheritable")?,
        ambient: set("ambient")?,
    }))
}

/// Also without its prefix, and in small letters, as other runtimes read them.
fn capability(word: &str) -> Option<CapabilitySet> {
    let upper = word.to_uppercase();
    CapabilitySet::from_name(upper.trim_start_matches("CAP_"))
}

/// The limits of a specification, each resource once.
pub(super) fn limits(list: &Value) -> Result<Vec<(Resource, Rlimit)>, Failed> {
    let mut limits: Vec<(Resource, Rlimit)> = Vec::new();
    for (index, given) in list.as_array().into_iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        let (resource, limit) = limit(&field, given)?;
        if limits.iter().any(|(other, _)| *other == resource) {
            return Err(invalid(&field, "a second limit of the same resource"));
        }
        limits.push((resource, limit));
    }
    Ok(limits)
}

fn limit(field: &str, limit: &Value) -> Result<(Resource, Rlimit), Failed> {
    let word = limit["type"].as_str().unwrap_or_default();
    let resource =
        resource(word).ok_or_else(|| invalid(&format!("{field}.type"), format_args!("{word:?}")))?;
    let amount = |name: &str| {
        limit[name]
            .as_u64()
            .filter(|amount| *amount != libc::RLIM_INFINITY)
    };
    let (current, maximum) = (amount("soft"), amount("hard"));
    if maximum.is_some_and(|hard| current.is_none_or(|soft| soft > hard)) {
        return Err(invalid(field, "soft is above hard"));
    }
    Ok((resource, Rlimit { current, maximum }))
}

/// An execution domain.
pub(super) fn personality(personality: &oci::LinuxPersonality) -> Result<u64, Failed> {
    const LINUX32: u64 = 8;
    if let Some(flag) = personality.flags.first() {
        // The specification defines none.
        return Err(invalid("linux.personality.flags", format_args!("{flag:?}")));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(LINUX32),
        word => Err(invalid("linux.personality.domain", format_args!("{word:?}"))),
    }
}

/// How a process is scheduled; none where the specification does not say.
pub(super) fn scheduling(scheduler: &Value) -> Result<Option<Scheduling>, Failed> {
    if !scheduler.is_object() {
        return Ok(None);
    }
    let number = |name: &str| scheduler[name].as_u64().unwrap_or(0);
    let signed = |name: &str| i32::try_from(scheduler[name].as_i64().unwrap_or(0)).unwrap_or(0);
    let word = scheduler["policy"].as_str().unwrap_or_default();
    let policy = policy(word).ok_or_else(|| invalid("process.scheduler.policy", format_args!("{word:?}")))?;
    let mut flags = 0;
    for (index, word) in strings(&scheduler["flags"]).iter().enumerate() {
        let field = format!("process.scheduler.flags[{index}]");
        flags |= scheduler_flag(word).ok_or_else(|| invalid(&field, format_args!("{word:?}")))?;
    }
    let priority = u32::try_from(signed("priority"))
        .map_err(|_| invalid("process.scheduler.priority", signed("priority")))?;
    Ok(Some(Scheduling {
        policy,
        flags,
        nice: signed("nice"),
        priority,
        runtime: number("runtime"),
        deadline: number("deadline"),
        period: number("period"),
        ..Scheduling::default()
    }))
}

fn policy(word: &str) -> Option<u32> {
    Some(match word {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        // Reserved by Linux, which refuses it.
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        _ => return None,
    })
}

fn scheduler_flag(word: &str) -> Option<u64> {
    Some(match word {
        "SCHED_FLAG_RESET_ON_FORK" => 0x01,
        "SCHED_FLAG_RECLAIM" => 0x02,
        "SCHED_FLAG_DL_OVERRUN" => 0x04,
        "SCHED_FLAG_KEEP_POLICY" => 0x08,
        "SCHED_FLAG_KEEP_PARAMS" => 0x10,
        "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
        "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
        _ => return None,
    })
}

/// A class and a level of input and output; none where the specification does not say.
pub(super) fn io_priority(priority: &Value) -> Result<Option<(i32, i32)>, Failed> {
    if !priority.is_object() {
        return Ok(None);
    }
    let class = match priority["class"].as_str().unwrap_or_default() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        word => return Err(invalid("process.ioPriority.class", format_args!("{word:?}"))),
    };
    let level = priority["priority"].as_i64().unwrap_or(0);
    match i32::try_from(level) {
        Ok(level @ 0..8) => Ok(Some((class, level))),
        _ => Err(invalid("process.ioPriority.priority", level)),
    }
}

/// The lists of processors of an exec'd process, in the order in which they apply.
pub(super) fn affinity(affinity: &Value) -> Result<Vec<CpuSet>, Failed> {
    let given = ["initial", "final"].into_iter().filter_map(|name| {
        let list = affinity[name].as_str()?;
        Some((format!("process.execCPUAffinity.{name}"), list))
    });
    given
        .map(|(field, list)| processors(list).ok_or_else(|| invalid(&field, format_args!("{list:?}"))))
        .collect()
}

/// Numbers and ranges, as "0-3,7".
fn processors(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        (first..=last).for_each(|processor| set.set(processor));
    }
    Some(set)
}

fn resource(word: &str) -> Option<Resource> {
    Some(match word {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn capabilities_are_read_as_other_runtimes_read_them() {
        let sets = json!({ "bounding": ["CAP_KILL", "chown"], "permitted": ["CAP_KILL"] });
        let expected = Capabilities {
            bounding: CapabilitySet::KILL | CapabilitySet::CHOWN,
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::KILL,
            inheritable: CapabilitySet::empty(),
            ambient: CapabilitySet::empty(),
        };
        assert_eq!(capabilities(&sets), Ok(Some(expected)));
        assert_eq!(capabilities(&Value::Null), Ok(None));
        let failed = capabilities(&json!({ "ambient": ["CAP_FLY"] })).expect_err("no such capability");
        assert_eq!(failed.kind, FailureKind::Invalid);
        assert!(failed.subject.contains("CAP_FLY"), "{failed}");
    }

    #[test]
    fn limits_are_numbers_or_infinite() {
        let given = json!([{ "type": "RLIMIT_NOFILE", "soft": 7, "hard": u64::MAX }]);
        let expected = Rlimit {
            current: Some(7),
            maximum: None,
        };
        assert_eq!(limits(&given), Ok(vec![(Resource::Nofile, expected)]));
        for (given, field) in [
            (json!([{ "type": "RLIMIT_FUN" }]), "process.rlimits[0].type"),
            (
                json!([{ "type": "RLIMIT_AS", "soft": 2, "hard": 1 }]),
                "process.rlimits[0]",
            ),
            (
                json!([{ "type": "RLIMIT_AS" }, { "type": "RLIMIT_AS" }]),
                "process.rlimits[1]",
            ),
        ] {
            refused(limits(&given), field);
        }
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(read: Result<T, Failed>, field: &str) {
        let failed = read.expect_err("invalid");
        assert_eq!(failed.kind, FailureKind::Invalid);
        assert!(failed.subject.starts_with(field), "{failed}");
    }

    #[test]
    fn scheduling_is_read_whole() {
        let given = json!({
            "policy": "SCHED_DEADLINE", "nice": -3, "priority": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 1, "deadline": 2, "period": 3,
        });
        let expected = Scheduling {
            policy: 6,
            flags: 1,
            nice: -3,
            runtime: 1,
            deadline: 2,
            period: 3,
            ..Scheduling::default()
        };
        assert_eq!(scheduling(&given), Ok(Some(expected)));
        assert_eq!(scheduling(&Value::Null), Ok(None));
        refused(
            scheduling(&json!({ "policy": "SCHED_FAST" })),
            "process.scheduler.policy",
        );
        let given = json!({ "policy": "SCHED_RR", "flags": ["FAST"] });
        refused(scheduling(&given), "process.scheduler.flags[0]");
        let given = json!({ "policy": "SCHED_RR", "priority": -1 });
        refused(scheduling(&given), "process.scheduler.priority");
    }

    #[test]
    fn priorities_of_input_and_output_are_a_class_and_a_level() {
        let given = json!({ "class": "IOPRIO_CLASS_BE", "priority": 7 });
        assert_eq!(io_priority(&given), Ok(Some((2, 7))));
        refused(
            io_priority(&json!({ "class": "BEST" })),
            "process.ioPriority.class",
        );
        let given = json!({ "class": "IOPRIO_CLASS_RT", "priority": 8 });
        refused(io_priority(&given), "process.ioPriority.priority");
    }

    #[test]
    fn lists_of_processors_are_numbers_and_ranges() {
        let set = processors("0-2, 5").expect("a list");
        let set = (0..7)
            .filter(|processor| set.is_set(*processor))
            .collect::<Vec<_>>();
        assert_eq!(set, [0, 1, 2, 5]);
        for list in ["", "a", "3-1", "0-99999"] {
            assert!(processors(list).is_none(), "{list}");
        }
        let read = affinity(&json!({ "initial": "0", "final": "x" }));
        refused(read.map(|sets| sets.len()), "process.execCPUAffinity.final");
    }

    #[test]
    fn there_are_two_execution_domains() {
        let of = |domain: &str, flags: &[&str]| {
            personality(&oci::LinuxPersonality {
                domain: domain.into(),
                flags: flags.iter().map(|&flag| flag.into()).collect(),
                ..Default::default()
            })
        };
        assert_eq!((of("LINUX", &[]), of("LINUX32", &[])), (Ok(0), Ok(8)));
        refused(of("BSD", &[]), "linux.personality.domain");
        refused(of("LINUX", &["x"]), "linux.personality.flags");
    }
}
