//! `boot nested`: monitors on a KVM against each other. It runs inside of the nested bed with instruction
//! counting, where a virtual millisecond is a million instructions and figures repeat.
//!
//! Prints one JSON line per figure, then [`TABLE`] and a Markdown table.

use std::error::Error;
use std::path::{Path, PathBuf};
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

/// Most of the time and of the memory until init that the first kernel may take, as a part of the second's.
const GOALS: (f64, f64) = (0.45, 0.5);

/// What one monitor did with one kernel.
struct Samples {
    contender: Contender,
    /// The name of the directory that the kernel is in.
    kernel: String,
    guest: Guest,
    times: Vec<Duration>,
    cost: Option<Cost>,
}

/// `INIT KERNEL… -- DIRECTORY…`: the guests, and where programs are.
pub(crate) fn run(mut arguments: impl Iterator<Item = PathBuf>) -> Result<(), Box<dyn Error>> {
    let usage = "usage: boot nested INIT KERNEL… -- DIRECTORY…; `cargo xtask bench boot` calls it";
    let init = arguments.next().ok_or(usage)?;
    let kernels: Vec<PathBuf> = arguments
        .by_ref()
        .take_while(|word| word.as_os_str() != "--")
        .collect();
    let directories: Vec<PathBuf> = arguments.collect();
    let initramfs = initramfs(&init, &[])?;
    let mut all = Vec::new();
    for kernel in &kernels {
        for contender in contenders::find(&directories) {
            all.push(Samples::new(contender, kernel, initramfs.path()));
        }
    }
    for round in 0..=ROUNDS {
        for samples in &mut all {
            samples.take(round > 0)?;
        }
    }
    report(&all)
}

impl Samples {
    fn new(contender: Contender, kernel: &Path, initramfs: &Path) -> Self {
        let directory = kernel.parent().and_then(Path::file_name).unwrap_or_default();
        Self {
            contender,
            kernel: directory.to_string_lossy().into_owned(),
            guest: Guest {
                kernel: kernel.to_owned(),
                initramfs: initramfs.to_owned(),
            },
            times: Vec::new(),
            cost: None,
        }
    }

    fn take(&mut self, counts: bool) -> Result<(), Box<dyn Error>> {
        let greeted = self.contender.greet(&self.guest)?;
        eprintln!(
            "{} kernel, {}: {:.1} ms",
            self.kernel,
            self.contender.name,
            greeted.after.as_secs_f64() * 1e3
        );
        if counts {
            self.times.push(greeted.after);
            self.cost = Some(observe::cost(&[greeted.pid()], u64::from(MEMORY_MIB) << 20)?);
        }
        Ok(())
    }

    /// The row of the table.
    fn row(&self) -> Result<Contest<'_>, Box<dyn Error>> {
        let cost = self.cost.as_ref().ok_or("nothing was measured")?;
        let name = format!("{}_{}", self.kernel, self.contender.name.replace('-', "_"));
        let mebibytes =
            |what: &str, bytes| Figure::mebibytes(&format!("{name}_{what}_mib"), [bytes].into_iter());
        Ok(Contest {
            name: self.contender.name,
            kernel: &self.kernel,
            hello: Figure::milliseconds(&format!("{name}_hello_ms"), &self.times),
            memory: mebibytes("private", cost.private_bytes),
            guest_memory: mebibytes("guest", cost.guest_bytes),
            exits: &cost.exits,
            threads: cost.threads,
        })
    }
}

#[expect(clippy::print_stdout, reason = "a program for people prints")]
fn report(all: &[Samples]) -> Result<(), Box<dyn Error>> {
    let rows = all.iter().map(Samples::row).collect::<Result<Vec<_>, _>>()?;
    for row in &rows {
        for figure in [&row.hello, &row.memory, &row.guest_memory] {
            println!("{}", serde_json::to_string(figure)?);
        }
        let name = format!("{}_{}", row.kernel, row.name.replace('-', "_"));
        println!(
            "{}",
            serde_json::json!({ "figure": format!("{name}_exits"), "exits": row.exits })
        );
        println!(
            "{}",
            serde_json::json!({ "figure": format!("{name}_threads"), "threads": row.threads })
        );
    }
    println!("{TABLE}\n{}{}", figures::contest(&rows), comparison(&rows));
    Ok(())
}

/// The first two kernels against each other, with the first monitor; nothing where there is one kernel.
fn comparison(rows: &[Contest<'_>]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let other = |row: &&Contest<'_>| row.name == first.name && row.kernel != first.kernel;
    let Some(second) = rows.iter().find(other) else {
        return String::new();
    };
    let judged = |what: &str, ratio: f64, goal: f64| {
        let reached = if ratio <= goal {
            "reached"
        } else {
            "**not reached**"
        };
        format!("{what} {ratio:.2} (goal {goal}: {reached})")
    };
    format!(
        "\nThe {} kernel against the {} kernel with {}: {}, {}.\n",
        first.kernel,
        second.kernel,
        first.name,
        judged("time to init", first.hello.median / second.hello.median, GOALS.0),
        judged(
            "guest memory at init",
            first.guest_memory.median / second.guest_memory.median,
            GOALS.1
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn kernels_are_compared_with_one_monitor_and_judged() {
        let exits = BTreeMap::new();
        let row = |kernel, name, milliseconds, mebibytes: u64| Contest {
            name,
            kernel,
            hello: Figure::milliseconds("h", &[Duration::from_millis(milliseconds)]),
            memory: Figure::mebibytes("p", [1].into_iter()),
            guest_memory: Figure::mebibytes("g", [mebibytes << 20].into_iter()),
            exits: &exits,
            threads: 1,
        };
        let rows = [
            row("new", "a", 40, 60),
            row("new", "b", 1, 1),
            row("old", "a", 100, 100),
        ];
        assert_eq!(
            comparison(&rows),
            "\nThe new kernel against the old kernel with a: time to init 0.40 (goal 0.45: reached), guest memory \
             at init 0.60 (goal 0.5: **not reached**).\n"
        );
        assert_eq!(comparison(&rows[..2]), "");
    }
}
