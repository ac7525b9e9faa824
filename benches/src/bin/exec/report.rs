//! What was measured, as JSON lines and as a table that says which goals are reached.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use benches::figure::{Figure, median};

use crate::{AT_ONCE, Measured, OUTPUT_BYTES};

/// Most resident memory of the agent when nothing runs, in MiB.
const AGENT_MIB: f64 = 3.0;

/// A figure of ours beside another, and what it may be at most of it.
struct Row<'a> {
    what: &'a str,
    ours: &'a [Duration],
    other: &'a [Duration],
    name: &'a str,
    goal: Option<f64>,
}

impl Row<'_> {
    fn ratio(&self) -> f64 {
        median(self.ours).as_secs_f64() / median(self.other).as_secs_f64()
    }

    fn line(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (goal, verdict) = match self.goal {
            Some(goal) => (format!("{goal:.2}"), reached(self.ratio() <= goal)),
            None => Default::default(),
        };
        format!(
            "| {} | {:.2} | {:.2} | {} | {:.2} | {:.2} | {:.2} | {goal} | {verdict} |",
            self.what,
            ms(median(self.ours)),
            ms(percentile(self.ours, 99)),
            self.name,
            ms(median(self.other)),
            ms(percentile(self.other, 99)),
            self.ratio(),
        )
    }
}

const fn reached(yes: bool) -> &'static str {
    if yes { "reached" } else { "missed" }
}

/// The value that so many of a hundred are not above.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// Prints the figures and writes the table.
pub(crate) fn write(measured: &Measured, hypervisor: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let figures = [
        ("exec_true_ms", &measured.exec),
        ("runc_exec_true_ms", &measured.runc_exec),
        ("container_ms", &measured.container),
        ("runc_run_ms", &measured.runc_run),
        ("runc_create_start_delete_ms", &measured.runc_create),
        ("output_ms", &measured.output),
        ("pipe_ms", &measured.pipe),
        ("copy_in_ms", &measured.copy_in),
        ("copy_out_ms", &measured.copy_out),
        ("cp_ms", &measured.cp),
    ];
    for (name, times) in figures {
        println!("{}", serde_json::to_string(&Figure::milliseconds(name, times))?);
    }
    let table = table(measured, hypervisor);
    print!("{table}");
    let path = out.join("exec.table.md");
    std::fs::write(&path, table).map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("the table is in {}", path.display());
    Ok(())
}

fn table(measured: &Measured, hypervisor: &str) -> String {
    let rows = [
        Row {
            what: "exec of `true`",
            ours: &measured.exec,
            other: &measured.runc_exec,
            name: "`runc exec`",
            goal: Some(0.5),
        },
        Row {
            what: "create, start, wait for, remove a container",
            ours: &measured.container,
            other: &measured.runc_create,
            name: "`runc create`, `start`, `delete`",
            goal: Some(1.0),
        },
        Row {
            what: "the same",
            ours: &measured.container,
            other: &measured.runc_run,
            name: "`runc run`",
            goal: Some(1.0),
        },
        Row {
            what: "256 MiB of output",
            ours: &measured.output,
            other: &measured.pipe,
            name: "a pipe between two processes",
            goal: Some(2.0),
        },
        Row {
            what: "a file of 64 MiB into a container",
            ours: &measured.copy_in,
            other: &measured.cp,
            name: "`cp` in the guest",
            goal: None,
        },
        Row {
            what: "the same file out of it",
            ours: &measured.copy_out,
            other: &measured.cp,
            name: "`cp` in the guest",
            goal: None,
        },
    ];
    let mut table = format!(
        "Measured by `cargo xtask bench exec` on {hypervisor}: a sandbox with one processor, ours by a call of the \
         library on the host until its answer, the others inside of the same guest, in turns. Milliseconds.\n\n\
         | what | ours | p99 | beside | median | p99 | ratio | goal | |\n|---|---:|---:|---|---:|---:|---:|---:|---|\n"
    );
    for row in &rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{}", row.line());
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52 bytes")]
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let agent = mib(measured.agent_bytes);
    let speed = mib(OUTPUT_BYTES) / median(&measured.output).as_secs_f64();
    let _ = writeln!(
        table,
        "\n- the agent's resident memory when nothing runs: {agent:.1} MiB (goal {AGENT_MIB}: {})\n\
         - output arrives at {speed:.0} MiB a second\n\
         - {AT_ONCE} processes at once started and ended in {:.0} ms",
        reached(agent <= AGENT_MIB),
        measured.at_once.as_secs_f64() * 1e3
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_reached() {
        let times = |ms: &[u64]| ms.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let measured = Measured {
            exec: times(&[4, 5, 6]),
            runc_exec: times(&[20, 20, 30]),
            container: times(&[50]),
            runc_run: times(&[40]),
            runc_create: times(&[100]),
            output: times(&[256]),
            pipe: times(&[100]),
            copy_in: times(&[80]),
            copy_out: times(&[60]),
            cp: times(&[40]),
            at_once: Duration::from_millis(900),
            agent_bytes: 2 << 20,
        };
        let table = table(&measured, "a machine");
        assert!(table.contains(
            "| exec of `true` | 5.00 | 6.00 | `runc exec` | 20.00 | 30.00 | 0.25 | 0.50 | reached |"
        ));
        assert!(
            table
                .contains("| the same | 50.00 | 50.00 | `runc run` | 40.00 | 40.00 | 1.25 | 1.00 | missed |")
        );
        assert!(table.contains("| 80.00 | 80.00 | `cp` in the guest | 40.00 | 40.00 | 2.00 |  |  |"));
        assert!(table.contains("2.0 MiB (goal 3: reached)") && table.contains("at 1000 MiB a second"));
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
