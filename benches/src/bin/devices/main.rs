//! `cargo xtask bench devices`: our block and net devices with Linux's own drivers, against QEMU's.
//!
//! ```text
//!  for each round, for each contender:
//!    fresh disk, fresh tap ─► machine ─► guest dials ─► phases, counters around each ─► disk compared
//!  then: JSON lines, and the files of `report`
//! ```
//!
//! It runs inside of the nested bed with instruction counting, where a virtual nanosecond is an instruction
//! and figures repeat.

#![expect(clippy::print_stdout, reason = "a program for people prints")]

mod contenders;
mod host;
mod measure;
mod plot;
mod report;

use std::error::Error;
use std::path::{Path, PathBuf};

use benches::guest::{Module, initramfs};
use contenders::{Contender, Kind};
use host::Host;
use measure::{Disk, Sample};

/// Times that every contender boots.
const ROUNDS: usize = 2;

/// Boots of QEMU's own machine for one sample, at most.
const ATTEMPTS: u32 = 3;

/// What every guest is made of.
#[derive(Debug)]
struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// What one contender did.
#[derive(Debug)]
struct Outcomes {
    contender: Contender,
    samples: Vec<Sample>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage =
        "usage: devices [--only=NAME] KERNEL INIT MODULES DIRECTORY…; `cargo xtask bench devices` calls it";
    let mut words = std::env::args_os().skip(1).map(PathBuf::from).peekable();
    let only = words.next_if(|word| word.to_string_lossy().starts_with("--only="));
    let only = only.and_then(|word| Some(word.to_str()?.strip_prefix("--only=")?.to_owned()));
    let (Some(kernel), Some(init), Some(modules)) = (words.next(), words.next(), words.next()) else {
        return Err(usage.into());
    };
    let archive = initramfs(&init, &read_modules(&modules)?)?;
    let guest = Guest {
        kernel,
        initramfs: archive.path().to_owned(),
    };
    let directories: Vec<PathBuf> = words.collect();
    let mut all: Vec<Outcomes> = contenders::find(&directories)?
        .into_iter()
        .filter(|contender| only.as_deref().is_none_or(|only| contender.name.contains(only)))
        .map(|contender| Outcomes {
            contender,
            samples: Vec::new(),
        })
        .collect();
    let host = Host::listen()?;
    let disk = Disk::new();
    for round in 1..=ROUNDS {
        for result in &mut all {
            eprintln!("round {round} of {ROUNDS}: {}", result.contender.name);
            let sample = sample(&result.contender, &guest, &host, &disk)?;
            result.samples.push(sample);
        }
    }
    report::print(&all)
}

/// Measures a contender once. A guest of QEMU's own machine sometimes stops in its boot in this bed; that says
/// nothing of devices, so it boots again. One of ours that stops is an error.
fn sample(contender: &Contender, guest: &Guest, host: &Host, disk: &Disk) -> Result<Sample, Box<dyn Error>> {
    let attempts = match contender.kind {
        Kind::Qemu(_) => ATTEMPTS,
        Kind::Ours | Kind::VhostUser => 1,
    };
    let mut attempt = 1;
    loop {
        match measure::run(contender, guest, host, disk) {
            Err(error) if attempt < attempts => eprintln!("{} once more: {error}", contender.name),
            result => return result.map_err(|error| format!("{}: {error}", contender.name).into()),
        }
        attempt += 1;
    }
}

/// The modules of a directory, in the order that its file `order` says; none where there is no directory.
fn read_modules(directory: &Path) -> Result<Vec<Module>, Box<dyn Error>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let order = std::fs::read_to_string(directory.join("order"))?;
    order
        .lines()
        .map(|name| Ok((name.to_owned(), std::fs::read(directory.join(name))?)))
        .collect()
}
