//! `boot nested`: monitors on a KVM against each other. It runs inside of the nested bed with instruction
//! counting, where a virtual millisecond is a million instructions and figures repeat.
//!
//! Prints one JSON line per figure, then [`TABLE`] and a Markdown table.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use benches::figure::Figure;
use benches::guest::initramfs;
use benches::observe::{self, Cost};

use crate::contenders::{self, Contender, Guest, MEMORY_MIB};
use crate::figures::{self, Contest};

/// Rounds that are measured; one more warms caches up, so that no disk is read while the clock runs.
const ROUNDS: usize = 3;

/// The line before the table.
pub(crate) const TABLE: &str = "table:";

/// What one monitor did.
struct Samples {
    contender: Contender,
    times: Vec<Duration>,
    cost: Option<Cost>,
}

/// `KERNEL INIT DIRECTORY…`: the guest, and where programs are.
pub(crate) fn run(mut arguments: impl Iterator<Item = PathBuf>) -> Result<(), Box<dyn Error>> {
    let usage = "usage: boot nested KERNEL INIT DIRECTORY…; `cargo xtask bench boot` calls it";
    let (kernel, init) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let directories: Vec<PathBuf> = arguments.collect();
    let initramfs = initramfs(&init, &[])?;
    let guest = Guest {
        kernel,
        initramfs: initramfs.path().to_owned(),
    };
    let mut all: Vec<Samples> = contenders::find(&directories)
        .into_iter()
        .map(Samples::new)
        .collect();
    for round in 0..=ROUNDS {
        for samples in &mut all {
            samples.take(&guest, round > 0)?;
        }
    }
    report(&all)
}

impl Samples {
    fn new(contender: Contender) -> Self {
        Self {
            contender,
            times: Vec::new(),
            cost: None,
        }
    }

    fn take(&mut self, guest: &Guest, counts: bool) -> Result<(), Box<dyn Error>> {
        let greeted = self.contender.greet(guest)?;
        eprintln!(
            "{}: {:.1} ms",
            self.contender.name,
            greeted.after.as_secs_f64() * 1e3
        );
        if counts {
            self.times.push(greeted.after);
            self.cost = Some(observe::cost(&[greeted.pid()], u64::from(MEMORY_MIB) << 20)?);
        }
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "a program for people prints")]
fn report(all: &[Samples]) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for Samples {
        contender,
        times,
        cost,
    } in all
    {
        let cost = cost.as_ref().ok_or("nothing was measured")?;
        let name = contender.name.replace('-', "_");
        let hello = Figure::milliseconds(&format!("{name}_hello_ms"), times);
        let memory = Figure::mebibytes(&format!("{name}_private_mib"), [cost.private_bytes].into_iter());
        println!("{}", serde_json::to_string(&hello)?);
        println!("{}", serde_json::to_string(&memory)?);
        println!(
            "{}",
            serde_json::json!({ "figure": format!("{name}_exits"), "exits": cost.exits })
        );
        println!(
            "{}",
            serde_json::json!({ "figure": format!("{name}_threads"), "threads": cost.threads })
        );
        rows.push(Contest {
            name: contender.name,
            hello,
            memory,
            exits: &cost.exits,
            threads: cost.threads,
        });
    }
    println!("{TABLE}\n{}", figures::contest(&rows));
    Ok(())
}
