//! The guest's packet filter, by its own programs.
//!
//! Owns which program is run. A guest without them says so.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kata_agent_proto::agent::{
    GetIPTablesRequest, GetIPTablesResponse, SetIPTablesRequest, SetIPTablesResponse,
};
use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::MemfdFlags;

use super::guest_failure;

/// Where the programs may be.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Seconds to wait for somebody else who changes the tables.
const LOCK_WAIT_S: &str = "5";

/// All tables, as iptables-save prints them.
pub(super) fn get(request: GetIPTablesRequest) -> Result<GetIPTablesResponse, Failed> {
    let name = if request.is_ipv6 {
        "ip6tables-save"
    } else {
        "iptables-save"
    };
    Ok(GetIPTablesResponse {
        data: output(name, &[], b"")?,
        ..Default::default()
    })
}

/// Replaces tables, as iptables-restore reads them.
pub(super) fn set(request: SetIPTablesRequest) -> Result<SetIPTablesResponse, Failed> {
    let name = if request.is_ipv6 {
        "ip6tables-restore"
    } else {
        "iptables-restore"
    };
    Ok(SetIPTablesResponse {
        data: output(name, &["--wait", LOCK_WAIT_S], &request.data)?,
        ..Default::default()
    })
}

fn output(name: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, Failed> {
    let program = find(name).ok_or_else(|| Failed::new(FailureKind::NotFound, name))?;
    let run = || -> io::Result<_> {
        // A file, and no pipe, so that neither waits for the other.
        let mut file = File::from(rustix::fs::memfd_create("tables", MemfdFlags::CLOEXEC)?);
        file.write_all(input)?;
        file.rewind()?;
        Command::new(program).args(args).stdin(Stdio::from(file)).output()
    };
    let output = run().map_err(|error| guest_failure(name, &error))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::new(
            FailureKind::Guest,
            format!("{name}: {}", words.trim()),
        ));
    }
    Ok(output.stdout)
}

fn find(name: &str) -> Option<PathBuf> {
    let mut candidates = DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name));
    candidates.find(|path| path.exists())
}
