//! Our devices against QEMU's, in the nested bed, whose clock counts instructions.
//!
//! It makes the guest's parts, brings them and the programs there, and writes the files that come back; the
//! package `benches` measures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BenchError;
use crate::bed::{Bed, BedError, Clock, End, Job, KERNEL, PROGRAMS, TAILORED};
use crate::guest::{self, Program};
use crate::process;
use crate::progress::Step;
use crate::setup::{self, Purpose, Ready};
use crate::workspace::Workspace;

/// PID 1 of the guest.
const INIT: Program = Program {
    what: "guest of the devices, static",
    package: "device-guest",
};

/// What the guest needs of a distribution's kernel: its disk, its card, its vsock.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
];

/// Where the modules are in the bed.
const MODULES_AT: &str = "/bench/modules";

/// A line of the benchmark before the lines of a file.
const FILE: &str = "file: ";

/// Eight guests, each of which moves some 300 MB, in a machine that counts its instructions: two minutes, and
/// as much again for a machine that has other things to do.
const ALLOWED: Duration = Duration::from_secs(300);

/// QEMU 7.2, which counts instructions and emulates SVM, sometimes executes none any more, with one processor
/// that never leaves `cpu_exec`; the next time it does not.
const ATTEMPTS: u32 = 4;

/// Measures, prints the figures, and writes table, profile and plot.
pub(super) fn run(workspace: &Workspace, only: Option<&str>) -> Result<(), BenchError> {
    let ready = setup::provide(workspace, Purpose::Run)?;
    let step = Step::start("benchmark");
    let build = ["build", "--release", "--package=benches", "--bin=devices"];
    process::run(&step, &mut workspace.cargo(&build)).map_err(BenchError::Build)?;
    step.done("");
    let parts = tempfile::tempdir()?;
    let mut job = job(workspace, &ready, parts.path())?;
    if let Some(only) = only {
        job.command.insert(1, format!("--only={only}").into());
    }
    let bed = Bed::make(workspace, &ready)?;
    let mut attempts = 1..=ATTEMPTS;
    let files = loop {
        let last = attempts.next().is_none_or(|attempt| attempt == ATTEMPTS);
        match attempt(&bed, &job) {
            Err(BenchError::Bed(BedError::Machine(error))) if !last => eprintln!("once more: {error}"),
            files => break files?,
        }
    };
    if only.is_some() {
        files.iter().for_each(|(_, text)| println!("{text}"));
        return Ok(());
    }
    let figures = workspace.root.join("docs/figures");
    std::fs::create_dir_all(&figures)?;
    for (name, text) in files {
        let path = figures.join(name);
        std::fs::write(&path, text.trim_end().to_owned() + "\n")?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

/// The files that the benchmark makes; what it says else is printed.
fn attempt(bed: &Bed, job: &Job) -> Result<Vec<(String, String)>, BenchError> {
    let mut files: Vec<(String, String)> = Vec::new();
    let end = bed.run(job, &mut |line| {
        if let Some(name) = line.strip_prefix(FILE) {
            files.push((name.to_owned(), String::new()));
        } else if let Some((_, text)) = files.last_mut() {
            text.push_str(line);
            text.push('\n');
        } else {
            println!("{line}");
        }
    })?;
    match end {
        End::Exit(0) if !files.is_empty() => Ok(files),
        end => Err(BenchError::Nested(end)),
    }
}

/// The benchmark with a tailored kernel where there is one, else with the distribution's and its modules.
fn job(workspace: &Workspace, ready: &Ready, parts: &Path) -> Result<Job, BenchError> {
    let programs = PathBuf::from(PROGRAMS);
    let (bench_at, init_at) = (programs.join("devices"), programs.join("device-guest"));
    let init = parts.join("init");
    std::fs::write(&init, guest::build_static(workspace, &INIT)?)?;
    let mut all = vec![
        (bench_at.clone(), workspace.target.join("release/devices")),
        (init_at.clone(), init),
    ];
    // A tailored kernel has everything built in.
    let kernel = match ready.tailored {
        Some(_) => TAILORED,
        None => {
            all.extend(modules(ready, parts)?);
            KERNEL
        }
    };
    let words = [
        bench_at,
        kernel.into(),
        init_at,
        MODULES_AT.into(),
        programs,
        "/usr/bin".into(),
    ];
    Ok(Job {
        command: words.into_iter().map(PathBuf::into_os_string).collect(),
        environment: Vec::new(),
        programs: all,
        clock: Clock::Instructions,
        allowed: Some(ALLOWED),
    })
}

/// The modules as files, with their places in the bed; `order` lists them.
fn modules(ready: &Ready, parts: &Path) -> Result<Vec<(PathBuf, PathBuf)>, BenchError> {
    let mut files = Vec::new();
    let mut order = String::new();
    for (name, content) in guest::modules_of(&ready.kernel.modules, &[], MODULES)? {
        order.push_str(&name);
        order.push('\n');
        files.push((name, content));
    }
    files.push(("order".to_owned(), order.into_bytes()));
    files
        .into_iter()
        .map(|(name, content)| {
            let from = parts.join(&name);
            std::fs::write(&from, content)?;
            Ok((Path::new(MODULES_AT).join(name), from))
        })
        .collect()
}
