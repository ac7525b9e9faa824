//! Monitors with KVM against each other, in the nested bed, whose clock counts instructions.
//!
//! It brings the programs there and takes the table back; the package `benches` measures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BenchError;
use crate::bed::{Bed, Clock, End, Job, KERNEL, PROGRAMS, TAILORED};

/// Monitors that may be in the directory of peers.
const PEERS: &[&str] = &["firecracker", "cloud-hypervisor"];

/// Where they are in the bed.
const PEERS_AT: &str = "/peers";

/// The line of the benchmark before its table.
const TABLE: &str = "table:";

/// An emulated machine that counts its instructions boots Debian's kernel in half a minute.
const ALLOWED: Duration = Duration::from_secs(1800);

/// Measures, prints the figures, and gives back the table.
pub(super) fn run(
    bed: &Bed,
    program: &Path,
    init: &Path,
    peers: Option<&Path>,
) -> Result<String, BenchError> {
    let mut table: Option<String> = None;
    let end = bed.run(&job(program, init, peers), &mut |line| match &mut table {
        Some(table) => {
            eprintln!("{line}");
            table.push_str(line);
            table.push('\n');
        }
        None if line == TABLE => table = Some(String::new()),
        None => println!("{line}"),
    })?;
    match (end, table) {
        (End::Exit(0), Some(table)) => Ok(table),
        (end, _) => Err(BenchError::Nested(end)),
    }
}

fn job(program: &Path, init: &Path, peers: Option<&Path>) -> Job {
    let programs = PathBuf::from(PROGRAMS);
    let (boot_at, init_at) = (programs.join("boot"), programs.join("baseline-init"));
    let mut all = vec![
        (boot_at.clone(), program.to_owned()),
        (init_at.clone(), init.to_owned()),
    ];
    for name in PEERS {
        let found = peers
            .map(|directory| directory.join(name))
            .filter(|path| path.is_file());
        all.extend(found.map(|path| (Path::new(PEERS_AT).join(name), path)));
    }
    let words = [
        boot_at,
        "nested".into(),
        init_at,
        TAILORED.into(),
        KERNEL.into(),
        "--".into(),
        programs,
        PEERS_AT.into(),
        "/usr/bin".into(),
    ];
    Job {
        command: words.into_iter().map(PathBuf::into_os_string).collect(),
        environment: Vec::new(),
        programs: all,
        clock: Clock::Instructions,
        allowed: Some(ALLOWED),
    }
}
