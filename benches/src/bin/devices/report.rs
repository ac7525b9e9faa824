//! The figures as JSON lines, and the files made of them.
//!
//! A file is printed as a line `file: NAME` with its lines behind it. It must not know how anything was
//! measured.

use std::error::Error;
use std::fmt::Write;

use crate::contenders::Kind;
use crate::measure::Phase;
use crate::{Outcomes, plot};

/// The line before the lines of a file.
const FILE: &str = "file:";

/// How a phase's outcome is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Mebibytes,
    Microseconds,
    Thousands,
}

impl Unit {
    fn of(phase: &str) -> Self {
        match phase {
            "block_random_read" | "block_random_write" | "net_round_trip" => Self::Microseconds,
            phase if phase.ends_with("at_depth") => Self::Thousands,
            _ => Self::Mebibytes,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mebibytes => "MiB/s",
            Self::Microseconds => "µs a request",
            Self::Thousands => "thousand requests/s",
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn value(self, phase: &Phase) -> f64 {
        let outcome = phase.outcome;
        let seconds = outcome.nanoseconds as f64 / 1e9;
        match self {
            Self::Mebibytes => outcome.bytes as f64 / f64::from(1 << 20) / seconds,
            Self::Microseconds => seconds * 1e6 / outcome.requests as f64,
            Self::Thousands => outcome.requests as f64 / 1e3 / seconds,
        }
    }
}

/// One phase on all contenders, in their order.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    unit: Unit,
    /// The middle of the rounds.
    values: Vec<f64>,
    /// QEMU's own best time by that of our monitor; by that of our devices behind vhost-user.
    pub(crate) ratio: f64,
    pub(crate) vhost_user_ratio: f64,
}

/// Prints everything.
pub(crate) fn print(all: &[Outcomes]) -> Result<(), Box<dyn Error>> {
    let rows = rows(all)?;
    for row in &rows {
        for (outcomes, value) in all.iter().zip(&row.values) {
            println!(
                "{}",
                serde_json::json!({
                    "figure": row.name, "contender": outcomes.contender.name, "value": value,
                    "unit": row.unit.name(),
                })
            );
        }
    }
    for outcomes in all {
        for (device, figures) in outcomes.samples.last().iter().flat_map(|sample| &sample.devices) {
            println!(
                "{}",
                serde_json::json!({
                    "contender": outcomes.contender.name, "device": device, "figures": figures,
                })
            );
        }
    }
    println!("{FILE} devices.table.md\n{}", table(all, &rows)?);
    println!("{FILE} devices.profile.md\n{}", profile(all)?);
    println!("{FILE} devices.svg\n{}", plot::draw(&rows)?);
    Ok(())
}

fn rows(all: &[Outcomes]) -> Result<Vec<Row>, Box<dyn Error>> {
    let first = all.first().and_then(|outcomes| outcomes.samples.first());
    let first = first.ok_or("nothing was measured")?;
    let mut rows = Vec::new();
    for (index, phase) in first.phases.iter().enumerate() {
        let unit = Unit::of(&phase.name);
        let value = |outcomes: &Outcomes| -> Option<f64> {
            let phases = outcomes.samples.iter().map(|sample| sample.phases.get(index));
            let mut values: Vec<f64> = phases
                .map(|phase| Some(unit.value(phase?)))
                .collect::<Option<_>>()?;
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let values: Option<Vec<f64>> = all.iter().map(value).collect();
        let values = values.ok_or("a phase is missing")?;
        let of = |wanted: fn(Kind) -> bool| {
            let kinds = all.iter().map(|outcomes| outcomes.contender.kind);
            let times = kinds.zip(&values).filter(|(kind, _)| wanted(*kind));
            times
                .map(|(_, value)| time(unit, *value))
                .fold(f64::INFINITY, f64::min)
        };
        let qemu = of(|kind| matches!(kind, Kind::Qemu(_)));
        rows.push(Row {
            name: phase.name.clone(),
            unit,
            ratio: qemu / of(|kind| kind == Kind::Ours),
            vhost_user_ratio: qemu / of(|kind| kind == Kind::VhostUser),
            values,
        });
    }
    Ok(rows)
}

/// Something that is in proportion to the time of the phase.
fn time(unit: Unit, value: f64) -> f64 {
    match unit {
        Unit::Microseconds => value,
        Unit::Mebibytes | Unit::Thousands => value.recip(),
    }
}

fn table(all: &[Outcomes], rows: &[Row]) -> Result<String, Box<dyn Error>> {
    let mut table =
        "Measured by `cargo xtask bench devices` in the nested bed, instructions counted: 1 vCPU, \
                     256 MiB, the same guest, a raw file in memory, a tap. A ratio above 1 is in favour of \
                     ours, against the better one of QEMU's own.\n\n| figure | unit |"
            .to_owned();
    for outcomes in all {
        write!(table, " {} |", outcomes.contender.name)?;
    }
    write!(table, " ratio | by vhost-user |\n|---|---|")?;
    for _ in all {
        write!(table, "---:|")?;
    }
    writeln!(table, "---:|---:|")?;
    for row in rows {
        write!(table, "| {} | {} |", row.name.replace('_', " "), row.unit.name())?;
        for value in &row.values {
            write!(table, " {value:.1} |")?;
        }
        writeln!(table, " {:.2} | {:.2} |", row.ratio, row.vhost_user_ratio)?;
    }
    for (name, value) in [
        ("threads", threads as fn(&Outcomes) -> String),
        ("private memory", private),
    ] {
        let unit = if name == "threads" { "" } else { "MiB" };
        write!(table, "| {name}, guest idle | {unit} |")?;
        for outcomes in all {
            write!(table, " {} |", value(outcomes))?;
        }
        writeln!(table, " | |")?;
    }
    Ok(table)
}

fn threads(outcomes: &Outcomes) -> String {
    let last = outcomes.samples.last();
    last.map_or(String::new(), |sample| sample.cost.threads.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn private(outcomes: &Outcomes) -> String {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let last = outcomes.samples.last();
    last.map_or(String::new(), |sample| {
        format!("{:.1}", mebibytes(sample.cost.private_bytes))
    })
}

/// Kinds of exits that a row names, the most frequent first.
const KINDS: usize = 4;

/// What was counted for every request.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn profile(all: &[Outcomes]) -> Result<String, Box<dyn Error>> {
    let mut table =
        "For each request (of a stream: for each 128 KiB): exits of the guest; of the monitor's other \
                     threads, how often they waited and their time on the processor; the time of the \
                     processor's thread, guest included.\n\n\
                     | figure | monitor | exits | of which | waits | devices µs | processor µs |\n\
                     |---|---|---:|---|---:|---:|---:|\n"
            .to_owned();
    let Some(first) = all.first().and_then(|outcomes| outcomes.samples.last()) else {
        return Ok(table);
    };
    for (index, phase) in first.phases.iter().enumerate() {
        for outcomes in all {
            let sample = outcomes.samples.last();
            let Some(phase) = sample.and_then(|sample| sample.phases.get(index)) else {
                continue;
            };
            let each = |count: u64| count as f64 / phase.outcome.requests as f64;
            let mut kinds: Vec<_> = phase.exits.iter().filter(|(kind, _)| *kind != "exits").collect();
            kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let kinds = kinds.into_iter().filter(|(_, count)| **count > 0).take(KINDS);
            let kinds: Vec<String> = kinds
                .map(|(kind, count)| format!("{} {:.2}", kind.trim_end_matches("_exits"), each(*count)))
                .collect();
            writeln!(
                table,
                "| {} | {} | {:.2} | {} | {:.2} | {:.1} | {:.1} |",
                phase.name.replace('_', " "),
                outcomes.contender.name,
                each(phase.exits.get("exits").copied().unwrap_or_default()),
                kinds.join(", "),
                each(phase.devices.waits),
                each(phase.devices.nanoseconds) / 1e3,
                each(phase.processor.nanoseconds) / 1e3,
            )?;
        }
        let _ = phase;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use benches::observe::Activity;
    use device_guest::phase::Outcome;

    use super::*;

    fn phase(name: &str, nanoseconds: u64) -> Phase {
        Phase {
            name: name.to_owned(),
            outcome: Outcome {
                requests: 10,
                bytes: 10 << 20,
                nanoseconds,
                median: 0,
            },
            exits: BTreeMap::new(),
            processor: Activity::default(),
            devices: Activity::default(),
        }
    }

    #[test]
    fn a_value_is_in_its_phases_unit() {
        let check = |name: &str, expected: f64| {
            let value = Unit::of(name).value(&phase(name, 100_000_000));
            assert!((value - expected).abs() < 1e-9, "{name}: {value}");
        };
        check("block_sequential_read", 100.0);
        check("block_random_read", 10_000.0);
        check("block_random_read_at_depth", 0.1);
        check("net_round_trip", 10_000.0);
    }

    #[test]
    fn less_time_is_better_in_every_unit() {
        for unit in [Unit::Mebibytes, Unit::Microseconds, Unit::Thousands] {
            let time = |nanoseconds| time(unit, unit.value(&phase("p", nanoseconds)));
            assert!((time(2_000) / time(1_000) - 2.0).abs() < 1e-9, "{unit:?}");
        }
    }
}
