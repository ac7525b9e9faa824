//! `cargo xtask bench boot`: what a sandbox costs against a guest that only says hello.
//!
//! Baseline and sandbox take turns in one run on one machine, so their ratio means something where
//! absolute times do not. Prints one JSON line per figure, and writes a table and a plot.

#![expect(clippy::print_stdout, reason = "a program for people prints")]

mod baseline;
mod contenders;
mod figures;
mod nested;
mod plot;
mod sandbox;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use benches::figure::{Figure, median};
use kata_image::guest;

/// Rounds that are measured; one more warms caches up.
const ROUNDS: usize = 12;

struct Arguments {
    rootfs: PathBuf,
    baseline_init: PathBuf,
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1).map(PathBuf::from).peekable();
    if words.next_if(|word| word.as_os_str() == "nested").is_some() {
        return nested::run(words);
    }
    let arguments = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    match (args.next(), args.next(), args.next()) {
        (Some(rootfs), Some(baseline_init), Some(out)) => Ok(Arguments {
            rootfs,
            baseline_init,
            out,
        }),
        _ => {
            Err("usage: boot ROOTFS BASELINE-INIT OUTPUT-DIRECTORY; `cargo xtask bench boot` calls it".into())
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let baseline = baseline::Baseline::new(
        &guest::Asset::Kernel.find(&guest::Overrides::default())?,
        &arguments.baseline_init,
    )?;
    let mut baselines = Vec::new();
    let mut boots = Vec::new();
    for round in 0..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        let hello = baseline.run()?;
        let boot = sandbox::boot(&arguments.rootfs).await?;
        if round > 0 {
            baselines.push(hello);
            boots.push(boot);
        }
    }
    let execs = sandbox::execs(&arguments.rootfs).await?;
    report(arguments, &baselines, &boots, &execs)
}

fn report(
    arguments: &Arguments,
    baselines: &[Duration],
    boots: &[sandbox::Boot],
    execs: &sandbox::Execs,
) -> Result<(), Box<dyn Error>> {
    let first_output: Vec<Duration> = boots.iter().map(|boot| boot.first_output).collect();
    let mut figures = vec![
        Figure::milliseconds("baseline_hello_ms", baselines),
        Figure::milliseconds("create_to_first_output_ms", &first_output),
        Figure::ratio("first_output_to_baseline_ratio", &first_output, baselines),
        Figure::milliseconds("exec_true_ms", &execs.round_trips),
        Figure::mebibytes(
            "host_memory_pss_mib",
            boots.iter().map(|boot| boot.host_memory_bytes),
        ),
    ];
    let stages = sandbox::stages(boots);
    figures.extend(stages.iter().map(|(stage, times)| Figure::stage(stage, times)));
    for figure in &figures {
        println!("{}", serde_json::to_string(figure)?);
    }
    write(
        &arguments.out.join("boot.table.md"),
        &figures::table(&figures, &execs.hypervisor),
    )?;
    let medians: Vec<_> = stages
        .iter()
        .map(|(stage, times)| (stage.clone(), median(times)))
        .collect();
    plot::draw(&arguments.out.join("boot.svg"), median(baselines), &medians)?;
    eprintln!("table and plot are in {}", arguments.out.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
