//! Figures: medians with their spread, as JSON lines and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    figure: String,
    median: f64,
    p10: f64,
    p90: f64,
    n: usize,
}

impl Figure {
    pub(crate) fn milliseconds(name: &str, times: &[Duration]) -> Self {
        Self::of(name, times.iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    pub(crate) fn mebibytes(name: &str, sizes: impl Iterator<Item = u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^52 bytes")]
        let mebibytes = sizes.map(|bytes| bytes as f64 / f64::from(1 << 20)).collect();
        Self::of(name, mebibytes)
    }

    /// Of pairs that were measured one after the other.
    pub(crate) fn ratio(name: &str, ours: &[Duration], baseline: &[Duration]) -> Self {
        let pairs = ours.iter().zip(baseline);
        Self::of(
            name,
            pairs
                .map(|(ours, base)| ours.as_secs_f64() / base.as_secs_f64())
                .collect(),
        )
    }

    pub(crate) fn stage(stage: &str, times: &[Duration]) -> Self {
        Self::milliseconds(&format!("stage_{}_ms", stage.replace(' ', "_")), times)
    }

    fn of(name: &str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let last = values.len().saturating_sub(1);
            values
                .get((last * percent + 50) / 100)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Self {
            figure: name.to_owned(),
            median: at(50),
            p10: at(10),
            p90: at(90),
            n: values.len(),
        }
    }
}

/// The middle one; zero of none.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A Markdown table of all figures.
pub(crate) fn table(figures: &[Figure], hypervisor: &str) -> String {
    let mut table = format!(
        "Measured by `cargo xtask bench boot` on {hypervisor}.\n\n\
         | figure | median | p10 | p90 | n |\n|---|---:|---:|---:|---:|\n"
    );
    for f in figures {
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {:.2} | {:.2} | {:.2} | {} |",
            f.figure, f.median, f.p10, f.p90, f.n
        );
    }
    table
}

/// What one monitor did against others.
#[derive(Debug)]
pub(crate) struct Contest<'a> {
    pub(crate) name: &'a str,
    pub(crate) hello: Figure,
    pub(crate) memory: Figure,
    pub(crate) exits: &'a BTreeMap<String, u64>,
    pub(crate) threads: usize,
}

/// Kinds of exits that a row names, the most frequent first.
const KINDS: usize = 4;

/// A Markdown table with a row for each monitor.
pub(crate) fn contest(rows: &[Contest<'_>]) -> String {
    let mut table =
        "Measured by `cargo xtask bench boot` in the nested bed, instructions counted: 1 vCPU, 128 MiB, \
                     the same kernel and initramfs, exec to the guest's first line of userspace.\n\n\
                     | monitor | hello ms | p10 | p90 | exits | of which | threads | private MiB |\n\
                     |---|---:|---:|---:|---:|---|---:|---:|\n"
            .to_owned();
    for row in rows {
        let mut kinds: Vec<_> = row.exits.iter().filter(|(kind, _)| *kind != "exits").collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let kinds: Vec<String> = kinds
            .iter()
            .take_while(|(_, count)| **count > 0)
            .take(KINDS)
            .map(|(kind, count)| format!("{} {count}", kind.trim_end_matches("_exits")))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {:.1} |",
            row.name,
            row.hello.median,
            row.hello.p10,
            row.hello.p90,
            row.exits.get("exits").copied().unwrap_or_default(),
            kinds.join(", "),
            row.threads,
            row.memory.median,
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_of_its_values() {
        let times: Vec<Duration> = [5, 1, 9, 3, 7].map(Duration::from_millis).into();
        let figure = Figure::milliseconds("x", &times);
        assert!((figure.median - 5.0).abs() < 1e-9 && (figure.p90 - 9.0).abs() < 1e-9);
        assert_eq!(median(&times), Duration::from_millis(5));
        assert_eq!(
            serde_json::to_string(&Figure::ratio("r", &times[..1], &times[1..2])).unwrap(),
            r#"{"figure":"r","median":5.0,"p10":5.0,"p90":5.0,"n":1}"#
        );
    }

    #[test]
    fn a_contest_names_the_most_frequent_exits() {
        let exits = [
            ("exits", 9),
            ("io_exits", 2),
            ("mmio_exits", 6),
            ("nmi_window_exits", 0),
        ];
        let exits = exits.map(|(kind, count)| (kind.to_owned(), count)).into();
        let row = Contest {
            name: "m",
            hello: Figure::milliseconds("h", &[Duration::from_millis(7)]),
            memory: Figure::mebibytes("p", [3 << 20].into_iter()),
            exits: &exits,
            threads: 2,
        };
        assert!(contest(&[row]).ends_with("| m | 7.0 | 7.0 | 7.0 | 9 | mmio 6, io 2 | 2 | 3.0 |\n"));
    }
}
