//! Which devices a container may use: the rules of the OCI runtime specification, enforced.
//!
//! cgroup v2 has no file for them. A small eBPF program at the cgroup decides on each access
//! (cgroup-v2.rst, Device controller). Owns what the rules mean; [`program`] writes the program, and
//! [`crate::sys`] gives it to the kernel. Must not know containers.
//!
//! The last rule that matches decides, as the specification's order has it, for each of reading, writing
//! and making a node; what no rule matches is denied. As with runc, these stay allowed after all rules: the devices that
//! each container has (config-linux.md#default-devices), and making a node of any device, which opens nothing. Devices
//! of the specification itself (`linux.devices`) come before its rules, which can deny them; devices that a request gives
//! come last. A specification without rules is one that allows none but these.

mod program;

use std::fs::File;
use std::io;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind, oci};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Making a node, reading, writing: `BPF_DEVCG_ACC_*` (linux/bpf.h).
const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const EVERY_ACCESS: u8 = MAKE | READ | WRITE;

/// Most rules of a container, so that the kernel's check of the program ends.
const RULES_MAX: usize = 256;

/// Rules that hold after all others.
fn defaults() -> impl Iterator<Item = Rule> {
    let node = |kind| Rule {
        allow: true,
        kind: Some(kind),
        major: None,
        minor: None,
        access: MAKE,
    };
    let device = |(major, minor)| Rule {
        allow: true,
        kind: Some(Kind::Character),
        major: Some(major),
        minor,
        access: EVERY_ACCESS,
    };
    let nodes = [Kind::Character, Kind::Block].map(node);
    nodes.into_iter().chain(DEFAULT_DEVICES.map(device))
}

/// Character devices of every container: null, zero, full, random, urandom, tty, console, ptmx, and the
/// terminals of its own (devices.txt of Linux).
const DEFAULT_DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// A kind of device, by its number in `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule. Nothing where everything matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    fn is_about_everything(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == EVERY_ACCESS
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules(Vec<Rule>);

impl Rules {
    /// The rules of a request.
    ///
    /// # Errors
    /// Invalid, by field and number of the rule.
    pub(crate) fn of(list: &[oci::LinuxDeviceCgroup]) -> Result<Self, Failed> {
        if list.len() > RULES_MAX {
            return Err(invalid(&format!(
                "devices: {} rules, of which {RULES_MAX} are possible",
                list.len()
            )));
        }
        let rules = list.iter().enumerate();
        let rules = rules.map(|(index, given)| {
            rule(given).map_err(|(field, value)| invalid(&format!("devices[{index}].{field}: {value}")))
        });
        let mut rules: Vec<Rule> = rules.collect::<Result<_, _>>()?;
        // What stands before a rule about everything decides nothing.
        if let Some(last) = rules.iter().rposition(Rule::is_about_everything) {
            rules.drain(..last);
        }
        rules.extend(defaults());
        Ok(Rules(rules))
    }

    /// What holds where a request has no rules.
    pub(crate) fn without_any() -> Self {
        Rules(defaults().collect())
    }

    /// Allows one device everything, as far as no rule says otherwise.
    pub(crate) fn allow_before(&mut self, block: bool, (major, minor): (u32, u32)) {
        if self.0.first().is_some_and(Rule::is_about_everything) {
            return;
        }
        let rule = Rule {
            allow: true,
            kind: Some(if block { Kind::Block } else { Kind::Character }),
            major: Some(major),
            minor: Some(minor),
            access: EVERY_ACCESS,
        };
        self.0.insert(0, rule);
    }

    /// Allows one device everything, or what the rule for its former numbers allowed.
    pub(crate) fn allow(&mut self, block: bool, (major, minor): (u32, u32), before: Option<(u32, u32)>) {
        let kind = Some(if block { Kind::Block } else { Kind::Character });
        let is_former = |rule: &&mut Rule| {
            let is_default = || defaults().any(|default| default == **rule);
            rule.allow && before.is_some() && before == rule.major.zip(rule.minor) && !is_default()
        };
        if let Some(rule) = self.0.iter_mut().find(is_former) {
            (rule.kind, rule.major, rule.minor) = (kind, Some(major), Some(minor));
            return;
        }
        self.0.push(Rule {
            allow: true,
            kind,
            major: Some(major),
            minor: Some(minor),
            access: EVERY_ACCESS,
        });
    }

    fn allow_everything(&self) -> bool {
        self.0.first().is_some_and(Rule::is_about_everything) && self.0.iter().all(|rule| rule.allow)
    }

    /// Has the kernel hold a cgroup to the rules, in place of those before.
    ///
    /// # Errors
    /// Unsupported when the kernel cannot; then those before go on to hold.
    pub(crate) fn enforce(&self, cgroup: &Path) -> Result<(), Failed> {
        self.attach(cgroup).map_err(|error| {
            Failed::new(
                FailureKind::Unsupported,
                format!("devices: device rules: {error}"),
            )
        })
    }

    fn attach(&self, cgroup: &Path) -> io::Result<()> {
        let cgroup = File::open(cgroup)?;
        if self.allow_everything() && sys::device_program(&cgroup).is_ok_and(|program| program.is_none()) {
            // Nothing forbids anything here, and a kernel without such programs can do this, too.
            return Ok(());
        }
        let program = sys::load_device_program(&program::of(&self.0))?;
        let before = sys::device_program(&cgroup)?;
        sys::attach_device_program(&cgroup, &program, before.as_ref())
    }
}

/// Whether there are rules of a cgroup itself.
pub(crate) fn hold_at(cgroup: &Path) -> bool {
    File::open(cgroup)
        .and_then(|cgroup| sys::device_program(&cgroup))
        .is_ok_and(|program| program.is_some())
}

fn invalid(what: &str) -> Failed {
    Failed::new(FailureKind::Invalid, what)
}

/// A rule, or the field without a meaning and its value.
fn rule(given: &oci::LinuxDeviceCgroup) -> Result<Rule, (&'static str, String)> {
    let kind = match given.type_.as_str() {
        "" | "a" => None,
        "b" => Some(Kind::Block),
        "c" | "u" => Some(Kind::Character),
        other => return Err(("type", format!("{other:?}"))),
    };
    // No device has the number 0:0: it is what numbers become that are not set.
    let unset = given.major == 0 && given.minor == 0;
    let number = |field: &'static str, number: i64| match number {
        -1 => Ok(None),
        _ if unset => Ok(None),
        _ => u32::try_from(number)
            .map(Some)
            .map_err(|_| (field, number.to_string())),
    };
    Ok(Rule {
        allow: given.allow,
        kind,
        major: number("major", given.major)?,
        minor: number("minor", given.minor)?,
        access: access(given, kind)?,
    })
}

fn access(given: &oci::LinuxDeviceCgroup, kind: Option<Kind>) -> Result<u8, (&'static str, String)> {
    let wrong = || ("access", format!("{:?}", given.access));
    if given.access.is_empty() {
        // Allowing some device nothing in particular may be a mistake, and is not taken for everything.
        return if given.allow && kind.is_some() {
            Err(wrong())
        } else {
            Ok(EVERY_ACCESS)
        };
    }
    given.access.bytes().try_fold(0, |access, letter| {
        Ok(access
            | match letter {
                b'm' => MAKE,
                b'r' => READ,
                b'w' => WRITE,
                _ => return Err(wrong()),
            })
    })
}

#[cfg(test)]
mod tests;
