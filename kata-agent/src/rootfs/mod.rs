//! The root file system of a container, seen from outside or from inside of it.
//!
//! Owns what is looked up there: paths ([`root`]), accounts ([`passwd`]), programs ([`program`]). Must not know how a
//! root is made.

pub(crate) mod passwd;
pub(crate) mod program;
pub(crate) mod root;

use std::io;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};

use passwd::Accounts;
use root::Root;

/// The accounts of a root that is a path, with or without its groups.
pub(crate) fn accounts_of(root: &Path, groups: bool) -> Result<Accounts, Failed> {
    let opened = Root::open(root).map_err(|error| file_failure(root, &error))?;
    accounts(&opened, groups)
}

fn accounts(root: &Root, groups: bool) -> Result<Accounts, Failed> {
    let read = |path: &str| {
        let path = Path::new(path);
        root.read(path).map_err(|error| file_failure(path, &error))
    };
    Ok(Accounts {
        passwd: read("/etc/passwd")?,
        group: if groups {
            read("/etc/group")?
        } else {
            String::new()
        },
    })
}

/// A file that is the agent's own, or that it needs.
pub(crate) fn file_failure(path: &Path, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("{}: {error}", path.display()))
}
