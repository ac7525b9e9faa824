//! Figures as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use benches::figure::Figure;

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
    /// What its guest boots.
    pub(crate) kernel: &'a str,
    pub(crate) hello: Figure,
    pub(crate) memory: Figure,
    pub(crate) guest_memory: Figure,
    pub(crate) exits: &'a BTreeMap<String, u64>,
    pub(crate) threads: usize,
}

/// Kinds of exits that a row names, the most frequent first.
const KINDS: usize = 4;

/// A Markdown table with a row for each monitor.
pub(crate) fn contest(rows: &[Contest<'_>]) -> String {
    let mut table =
        "Measured by `cargo xtask bench boot` in the nested bed, instructions counted: 1 vCPU, 128 MiB, \
                     the same initramfs, exec to the guest's first line of userspace.\n\n\
                     | kernel | monitor | hello ms | p10 | p90 | exits | of which | threads | private MiB | guest MiB |\n\
                     |---|---|---:|---:|---:|---:|---|---:|---:|---:|\n"
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
            "| {} | {} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {:.1} | {:.1} |",
            row.kernel,
            row.name,
            row.hello.median,
            row.hello.p10,
            row.hello.p90,
            row.exits.get("exits").copied().unwrap_or_default(),
            kinds.join(", "),
            row.threads,
            row.memory.median,
            row.guest_memory.median,
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
            kernel: "k",
            hello: Figure::milliseconds("h", &[Duration::from_millis(7)]),
            memory: Figure::mebibytes("p", [3 << 20].into_iter()),
            guest_memory: Figure::mebibytes("g", [40 << 20].into_iter()),
            exits: &exits,
            threads: 2,
        };
        assert!(
            contest(&[row]).ends_with("| k | m | 7.0 | 7.0 | 7.0 | 9 | mmio 6, io 2 | 2 | 3.0 | 40.0 |\n")
        );
    }
}
