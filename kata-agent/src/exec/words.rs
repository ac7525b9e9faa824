//! Words of the OCI specification for limits and capabilities, as numbers.
//!
//! Owns their spelling (getrlimit(2), capabilities(7)). A word that is not known is an error.

use kata_agent_proto::{Failed, FailureKind};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;
use serde_json::Value;

use crate::worker::strings;

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
            Ok::<_, Failed>(set | capability(word)?)
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

/// Also without its prefix, and in small letters, as libcontainer reads them.
fn capability(word: &str) -> Result<CapabilitySet, Failed> {
    let upper = word.to_uppercase();
    let name = upper.trim_start_matches("CAP_");
    CapabilitySet::from_name(name)
        .ok_or_else(|| Failed::new(FailureKind::Invalid, format!("capability {word:?}")))
}

/// A limit of a specification.
pub(super) fn limit(limit: &Value) -> Result<(Resource, Rlimit), Failed> {
    let word = limit["type"].as_str().unwrap_or_default();
    let resource =
        resource(word).ok_or_else(|| Failed::new(FailureKind::Invalid, format!("limit {word:?}")))?;
    let amount = |name: &str| {
        limit[name]
            .as_u64()
            .filter(|amount| *amount != libc::RLIM_INFINITY)
    };
    Ok((
        resource,
        Rlimit {
            current: amount("soft"),
            maximum: amount("hard"),
        },
    ))
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
    fn capabilities_are_read_as_libcontainer_reads_them() {
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
        let given = json!({ "type": "RLIMIT_NOFILE", "soft": 7, "hard": u64::MAX });
        let expected = Rlimit {
            current: Some(7),
            maximum: None,
        };
        assert_eq!(limit(&given), Ok((Resource::Nofile, expected)));
        let failed = limit(&json!({ "type": "RLIMIT_FUN" })).expect_err("no such limit");
        assert_eq!(failed.kind, FailureKind::Invalid);
    }
}
