//! What a process is to be, read before anything is made.
//!
//! Owns the reading of an OCI process into what system calls take. Must not touch the system, but for what it is asked later.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use kata_agent_proto::{Failed, FailureKind};
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::CpuSet;
use serde_json::Value;

use super::Traits;
use super::words::{self, Capabilities, invalid};
use crate::rootfs::passwd::User;
use crate::rootfs::program::{candidates, search_path};
use crate::spec::json::{number, strings};
use crate::sys::Scheduling;

/// The bits of a mask of modes.
const UMASK_MAX: u64 = 0o777;

/// What a security module is told of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Label {
    AppArmor(String),
    Selinux(String),
}

impl Label {
    fn of(process: &Value) -> Option<Self> {
        let text = |name: &str| process[name].as_str().map(str::to_owned);
        let app_armor = text("apparmorProfile").map(Label::AppArmor);
        app_armor.or_else(|| text("selinuxLabel").map(Label::Selinux))
    }

    /// Whether the kernel has the module. Asks the system, so not while planning.
    pub(super) fn is_known_to_kernel(&self) -> bool {
        match self {
            Label::AppArmor(_) => fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|enabled| enabled.starts_with('Y')),
            Label::Selinux(_) => fs::read_to_string("/proc/filesystems")
                .is_ok_and(|list| list.lines().any(|line| line.ends_with("selinuxfs"))),
        }
    }

    /// The field, and what the kernel is told.
    pub(super) fn text(&self) -> (&'static str, String) {
        match self {
            Label::AppArmor(profile) => ("process.apparmorProfile", format!("exec {profile}")),
            Label::Selinux(label) => ("process.selinuxLabel", label.clone()),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) args: Vec<CString>,
    /// Where the program may be, in the order of trying.
    pub(super) candidates: Vec<CString>,
    pub(super) env: Vec<CString>,
    /// Whether the environment names a home.
    pub(super) has_home: bool,
    pub(crate) cwd: CString,
    /// A user to look up in the container, in place of the numbers.
    pub(super) user: Option<User>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) additional_gids: Vec<u32>,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i64>,
    pub(super) umask: Option<u32>,
    pub(super) scheduling: Option<Scheduling>,
    pub(super) io_priority: Option<(i32, i32)>,
    /// One after the other; of an exec'd process only.
    pub(super) affinity: Vec<CpuSet>,
    pub(super) label: Option<Label>,
    pub(super) traits: Arc<Traits>,
    /// The size of the terminal that takes the place of its standard streams.
    pub(crate) terminal: Option<Winsize>,
}

impl Plan {
    /// The plan of a process of an OCI specification.
    ///
    /// # Errors
    /// Invalid: what has no meaning, by the field.
    pub(crate) fn new(process: &Value, user: Option<&User>, traits: &Arc<Traits>) -> Result<Self, Failed> {
        if process["apparmorProfile"].is_string() && process["selinuxLabel"].is_string() {
            let text = "process.selinuxLabel: beside process.apparmorProfile";
            return Err(Failed::new(FailureKind::Unsupported, text));
        }
        let args = strings(&process["args"]);
        let program = args
            .first()
            .ok_or_else(|| invalid("process.args", "a process without arguments"))?;
        let mut env = strings(&process["env"]);
        // An empty home is none.
        env.retain(|entry| entry != "HOME=");
        let candidates = candidates(program, search_path(&env), Path::new(""));
        let candidates = candidates
            .into_iter()
            .map(|path| path.into_os_string().into_vec());
        let umask = process["user"]["umask"].as_u64();
        if let Some(umask) = umask.filter(|umask| *umask > UMASK_MAX) {
            return Err(invalid("process.user.umask", format_args!("{umask:#o}")));
        }
        Ok(Plan {
            candidates: texts("process.args", candidates)?,
            has_home: env.iter().any(|entry| entry.starts_with("HOME=")),
            args: texts("process.args", args)?,
            env: texts("process.env", env)?,
            cwd: text("process.cwd", process["cwd"].as_str().unwrap_or("/"))?,
            user: user.cloned(),
            uid: number(&process["user"]["uid"]),
            gid: number(&process["user"]["gid"]),
            additional_gids: numbers(&process["user"]["additionalGids"]),
            umask: umask.and_then(|umask| u32::try_from(umask).ok()),
            limits: words::limits(&process["rlimits"])?,
            capabilities: words::capabilities(&process["capabilities"])?,
            no_new_privileges: process["noNewPrivileges"].as_bool().unwrap_or(false),
            oom_score_adj: process["oomScoreAdj"].as_i64(),
            scheduling: words::scheduling(&process["scheduler"])?,
            io_priority: words::io_priority(&process["ioPriority"])?,
            affinity: words::affinity(&process["execCPUAffinity"])?,
            label: Label::of(process),
            terminal: terminal(process),
            traits: traits.clone(),
        })
    }

    /// Whether a filter is loaded by right of root, and not by giving up the gain of privileges.
    pub(super) fn loads_as_root(&self) -> bool {
        self.traits.filter.is_some() && !self.no_new_privileges
    }

    /// Where the program may be, in the order of trying.
    pub(crate) fn program_paths(&self) -> impl Iterator<Item = &Path> {
        let bytes = self.candidates.iter().map(|candidate| candidate.as_bytes());
        bytes.map(|bytes| Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }

    /// The program as it was asked for.
    pub(crate) fn program(&self) -> String {
        self.args
            .first()
            .map_or_else(String::new, |program| program.to_string_lossy().into_owned())
    }
}

fn terminal(process: &Value) -> Option<Winsize> {
    let cells = |name: &str| u16::try_from(number(&process["consoleSize"][name])).unwrap_or(u16::MAX);
    (process["terminal"].as_bool() == Some(true)).then(|| Winsize {
        ws_row: cells("height"),
        ws_col: cells("width"),
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

/// A text for the kernel.
pub(crate) fn text(field: &str, text: impl Into<Vec<u8>>) -> Result<CString, Failed> {
    CString::new(text).map_err(|_| invalid(field, "a text with a null byte"))
}

fn texts<T: Into<Vec<u8>>>(field: &str, items: impl IntoIterator<Item = T>) -> Result<Vec<CString>, Failed> {
    let items = items.into_iter().enumerate();
    items
        .map(|(index, item)| text(&format!("{field}[{index}]"), item))
        .collect()
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().into_iter().flatten().map(number).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(process: Value) -> Plan {
        Plan::new(&process, None, &Arc::default()).expect("valid")
    }

    #[test]
    fn a_process_is_read_whole() {
        let plan = planned(json!({
            "args": ["sh", "-c", "x"], "env": ["PATH=/a:/b", "HOME=/h"], "cwd": "/d",
            "user": { "uid": 1, "gid": 2, "additionalGids": [3, 4] },
            "rlimits": [{ "type": "RLIMIT_CORE", "soft": 0, "hard": 1 }],
            "noNewPrivileges": true, "oomScoreAdj": -5, "terminal": true,
            "consoleSize": { "height": 3, "width": 70000 },
        }));
        let size = plan.terminal.map(|size| (size.ws_row, size.ws_col));
        assert_eq!(size, Some((3, u16::MAX)));
        assert_eq!(plan.candidates, [c"/a/sh".to_owned(), c"/b/sh".to_owned()]);
        assert_eq!(plan.env, [c"PATH=/a:/b".to_owned(), c"HOME=/h".to_owned()]);
        assert_eq!((plan.has_home, plan.cwd.as_c_str()), (true, c"/d"));
        assert_eq!((plan.uid, plan.gid, plan.additional_gids), (1, 2, vec![3, 4]));
        assert_eq!((plan.limits.len(), plan.capabilities), (1, None));
        assert_eq!((plan.no_new_privileges, plan.oom_score_adj), (true, Some(-5)));
    }

    #[test]
    fn an_empty_home_is_none() {
        let plan = planned(json!({ "args": ["/bin/x"], "env": ["HOME=", "A="] }));
        assert_eq!((plan.has_home, plan.env), (false, vec![c"A=".to_owned()]));
        assert_eq!(plan.candidates, [c"/bin/x".to_owned()]);
    }

    #[test]
    fn what_has_no_meaning_is_invalid_by_its_field() {
        for (process, field) in [
            (json!({ "args": [] }), "process.args"),
            (json!({ "args": ["a", "a\0b"] }), "process.args[1]"),
            (json!({ "args": ["a"], "env": ["A=", "A=\0"] }), "process.env[1]"),
            (json!({ "args": ["a"], "cwd": "/\0" }), "process.cwd"),
            (
                json!({ "args": ["a"], "user": { "umask": 0o1000 } }),
                "process.user.umask",
            ),
            (
                json!({ "args": ["a"], "rlimits": [{ "type": "x" }] }),
                "process.rlimits[0].type",
            ),
        ] {
            let failed = Plan::new(&process, None, &Arc::default()).expect_err("invalid");
            assert_eq!(failed.kind, FailureKind::Invalid, "{process}");
            assert!(failed.subject.starts_with(field), "{failed}");
        }
    }

    #[test]
    fn a_label_is_the_security_modules_own() {
        let label = |process: Value| Label::of(&process).map(|label| label.text());
        let profile = label(json!({ "apparmorProfile": "p" }));
        assert_eq!(profile, Some(("process.apparmorProfile", "exec p".to_owned())));
        let context = label(json!({ "selinuxLabel": "a:b" }));
        assert_eq!(context, Some(("process.selinuxLabel", "a:b".to_owned())));
        assert_eq!(label(json!({})), None);
    }
}
