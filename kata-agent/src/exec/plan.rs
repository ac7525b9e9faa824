//! What a process is to be, read before anything is made.
//!
//! Owns the reading of an OCI process into what system calls take. Must not touch the system.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use serde_json::Value;

use super::words::{self, Capabilities};
use crate::order::User;
use crate::worker::program::{candidates, search_path};
use crate::worker::{number, strings};

/// See the module.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) args: Vec<CString>,
    /// Where the program may be, in the order of trying.
    pub(super) candidates: Vec<CString>,
    pub(super) env: Vec<CString>,
    /// Whether the environment names a home.
    pub(super) has_home: bool,
    pub(super) cwd: CString,
    /// A user to look up in the container, in place of the numbers.
    pub(super) user: Option<User>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) additional_gids: Vec<u32>,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) no_new_privileges: bool,
    pub(super) oom_score_adj: Option<i64>,
    /// The size of the terminal that takes the place of its standard streams.
    pub(crate) terminal: Option<Winsize>,
}

impl Plan {
    /// The plan of a process of an OCI specification; none when it asks for what is not done here.
    ///
    /// # Errors
    /// Invalid: what has no meaning.
    pub(crate) fn new(process: &Value, user: Option<&User>) -> Result<Option<Self>, Failed> {
        if process["apparmorProfile"].is_string() {
            return Ok(None);
        }
        let args = strings(&process["args"]);
        let program = args
            .first()
            .ok_or_else(|| invalid("a process without arguments"))?;
        let mut env = strings(&process["env"]);
        // An empty home is none.
        env.retain(|entry| entry != "HOME=");
        let candidates = candidates(program, search_path(&env), Path::new(""));
        let limits = process["rlimits"].as_array().into_iter().flatten();
        Ok(Some(Plan {
            candidates: texts(
                candidates
                    .into_iter()
                    .map(|path| path.into_os_string().into_vec()),
            )?,
            has_home: env.iter().any(|entry| entry.starts_with("HOME=")),
            args: texts(args)?,
            env: texts(env)?,
            cwd: text(process["cwd"].as_str().unwrap_or("/"))?,
            user: user.cloned(),
            uid: number(&process["user"]["uid"]),
            gid: number(&process["user"]["gid"]),
            additional_gids: numbers(&process["user"]["additionalGids"]),
            limits: limits.map(words::limit).collect::<Result<_, _>>()?,
            capabilities: words::capabilities(&process["capabilities"])?,
            no_new_privileges: process["noNewPrivileges"].as_bool().unwrap_or(false),
            oom_score_adj: process["oomScoreAdj"].as_i64(),
            terminal: terminal(process),
        }))
    }

    /// The program as it was asked for.
    pub(super) fn program(&self) -> String {
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

fn invalid(what: &str) -> Failed {
    Failed::new(FailureKind::Invalid, what)
}

fn text(text: impl Into<Vec<u8>>) -> Result<CString, Failed> {
    CString::new(text).map_err(|_| invalid("a text with a null byte"))
}

fn texts<T: Into<Vec<u8>>>(items: impl IntoIterator<Item = T>) -> Result<Vec<CString>, Failed> {
    items.into_iter().map(text).collect()
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().into_iter().flatten().map(number).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(process: Value) -> Plan {
        Plan::new(&process, None).expect("valid").expect("done here")
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
    fn what_has_no_meaning_is_invalid_and_what_is_not_done_here_is_left() {
        for process in [
            json!({ "args": [] }),
            json!({ "args": ["a\0b"] }),
            json!({ "args": ["a"], "env": ["A=\0"] }),
            json!({ "args": ["a"], "rlimits": [{ "type": "x" }] }),
        ] {
            let failed = Plan::new(&process, None).expect_err("invalid");
            assert_eq!(failed.kind, FailureKind::Invalid, "{process}");
        }
        let process = json!({ "args": ["a"], "apparmorProfile": "p" });
        assert!(Plan::new(&process, None).expect("valid").is_none());
    }
}
