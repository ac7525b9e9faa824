//! The rounds as JSON lines, as a table with goals, and as a plot. How anything was measured, it must not know.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use benches::figure::Figure;

use crate::contenders::{Run, STEPS, Writer};
use crate::plot;
use crate::process::Cost;
use crate::subject::Subject;

/// At least so many times as fast as the pipeline.
const SPEEDUP: f64 = 2.0;
/// Our writer on the same directory takes at most so many times as long as mkfs.erofs, and so much space.
const WRITER_TIME: f64 = 1.5;
const WRITER_SIZE: f64 = 1.1;
/// The most memory of a pull, in MiB.
const PEAK_MIB: f64 = 64.0;
/// The most time for an image that is in the store, in milliseconds.
const WARM_MS: f64 = 5.0;
/// How the figures of such an image begin.
const WARM: &str = "image that is there";

/// What was measured one after the other.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) pull: Cost,
    pub(crate) pipeline: [Cost; 4],
    pub(crate) writer: Writer,
    /// With an empty store, and with what the first left there.
    pub(crate) first_run: Run,
    pub(crate) second_run: Run,
    /// The store alone, asked for what it has, in microseconds.
    pub(crate) again_us: Vec<u64>,
}

impl Round {
    fn whole_pipeline(&self) -> Cost {
        Cost::sum(&self.pipeline)
    }
}

/// What one contender, or a step of it, cost in all rounds.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) wall: Figure,
    processor: Figure,
    peak: Figure,
    written: Figure,
}

impl Row {
    fn new(name: &'static str, costs: &[Cost]) -> Self {
        let figure = |what: &str, of: fn(&Cost) -> Duration| {
            let times: Vec<_> = costs.iter().map(of).collect();
            Figure::milliseconds(&format!("{name}: {what}"), &times)
        };
        let bytes = |what: &str, of: fn(&Cost) -> u64| {
            Figure::mebibytes(&format!("{name}: {what}"), costs.iter().map(of))
        };
        Self {
            name,
            wall: figure("wall_ms", |cost| cost.wall),
            processor: figure("processor_ms", |cost| cost.processor),
            peak: bytes("peak_mib", |cost| cost.peak_bytes),
            written: bytes("written_mib", |cost| cost.written_bytes),
        }
    }

    fn figures(&self) -> [&Figure; 4] {
        [&self.wall, &self.processor, &self.peak, &self.written]
    }
}

/// Something that was to be reached.
#[derive(Debug, PartialEq)]
struct Goal {
    what: String,
    reached: bool,
}

impl Goal {
    fn line(&self) -> String {
        let word = if self.reached { "reached" } else { "NOT reached" };
        format!("{word}: {}", self.what)
    }
}

/// Figures of runs, each in milliseconds.
fn runs(rounds: &[Round]) -> Vec<Figure> {
    let figure = |name: &str, of: fn(&Round) -> u64| {
        let times: Vec<_> = rounds
            .iter()
            .map(|round| Duration::from_micros(of(round)))
            .collect();
        Figure::milliseconds(name, &times)
    };
    let again = rounds.iter().flat_map(|round| &round.again_us);
    let again: Vec<_> = again.map(|time| Duration::from_micros(*time)).collect();
    vec![
        figure("first run: image, host probed too", |round| {
            round.first_run.image_us
        }),
        figure("first run: first output", |round| round.first_run.first_output_us),
        figure("second run: image, host probed too", |round| {
            round.second_run.image_us
        }),
        figure("second run: first output", |round| {
            round.second_run.first_output_us
        }),
        figure(&format!("{WARM}, first in a process"), |round| {
            round.again_us.first().copied().unwrap_or(u64::MAX)
        }),
        Figure::milliseconds(&format!("{WARM}, again and again"), &again),
    ]
}

/// Our writer against mkfs.erofs on the same directory.
struct WriterFigures {
    time: Figure,
    size: Figure,
}

/// Where mkfs.erofs stands among the steps.
const MKFS: usize = 2;

impl WriterFigures {
    fn new(rounds: &[Round]) -> Self {
        let ours: Vec<_> = rounds.iter().map(|round| round.writer.cost.wall).collect();
        let theirs: Vec<_> = rounds.iter().map(|round| round.pipeline[MKFS].wall).collect();
        Self {
            time: Figure::ratio("our writer / mkfs.erofs: time", &ours, &theirs),
            size: Figure::of(
                "our writer / mkfs.erofs: size",
                rounds.iter().map(|round| size_ratio(round.writer)).collect(),
            ),
        }
    }

    fn goals(&self) -> [Goal; 2] {
        let goal = |what: &str, figure: &Figure, most: f64| Goal {
            what: format!(
                "the image of a directory takes {:.2} times the {what} that mkfs.erofs takes for it (median of {}; p10 \
                 {:.2}, p90 {:.2}); the goal is {most}",
                figure.median, figure.n, figure.p10, figure.p90
            ),
            reached: figure.median <= most,
        };
        [
            goal("time", &self.time, WRITER_TIME),
            goal("space", &self.size, WRITER_SIZE),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52 bytes")]
fn size_ratio(writer: Writer) -> f64 {
    writer.bytes as f64 / writer.mkfs_bytes as f64
}

fn goals(speedup: &Figure, ours: &Row, runs: &[Figure]) -> Vec<Goal> {
    let mut goals = vec![
        Goal {
            what: format!(
                "{:.1} times as fast as the pipeline (median of {}; p10 {:.1}, p90 {:.1}); the goal is {SPEEDUP}",
                speedup.median, speedup.n, speedup.p10, speedup.p90
            ),
            reached: speedup.median >= SPEEDUP,
        },
        Goal {
            what: format!(
                "a pull takes {:.1} MiB of memory at its peak (p90); the goal is {PEAK_MIB}",
                ours.peak.p90
            ),
            reached: ours.peak.p90 <= PEAK_MIB,
        },
    ];
    goals.extend(
        runs.iter()
            .filter(|figure| figure.figure.starts_with(WARM))
            .map(|warm| Goal {
                what: format!(
                    "{} takes {:.2} ms (median of {}; p90 {:.2}); the goal is {WARM_MS} ms",
                    warm.figure, warm.median, warm.n, warm.p90
                ),
                reached: warm.p90 < WARM_MS,
            }),
    );
    goals
}

/// Prints the figures, the table and the goals; writes table and plot.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(subject: &Subject, rounds: &[Round], out: &Path) -> Result<(), Box<dyn Error>> {
    let costs: Vec<_> = rounds.iter().map(|round| round.pull).collect();
    let ours = Row::new("our store", &costs);
    let costs: Vec<_> = rounds.iter().map(Round::whole_pipeline).collect();
    let pipeline = Row::new("the pipeline", &costs);
    let step = |(index, name): (usize, &&'static str)| {
        let costs: Vec<_> = rounds.iter().map(|round| round.pipeline[index]).collect();
        Row::new(name, &costs)
    };
    let steps: Vec<Row> = STEPS.iter().enumerate().map(step).collect();
    let costs: Vec<_> = rounds.iter().map(|round| round.writer.cost).collect();
    let writer = Row::new("our writer, for mkfs.erofs", &costs);
    let writer_figures = WriterFigures::new(rounds);
    let pairs = rounds
        .iter()
        .map(|round| (round.whole_pipeline().wall, round.pull.wall));
    let (theirs, own): (Vec<_>, Vec<_>) = pairs.unzip();
    let speedup = Figure::ratio("speedup", &theirs, &own);
    let runs = runs(rounds);
    let rows: Vec<&Row> = [&ours, &pipeline]
        .into_iter()
        .chain(&steps)
        .chain([&writer])
        .collect();
    for figure in rows.iter().flat_map(|row| row.figures()).chain(&runs).chain([
        &speedup,
        &writer_figures.time,
        &writer_figures.size,
    ]) {
        println!("{}", serde_json::to_string(figure)?);
    }
    let hypervisor = rounds.first().map_or("", |round| &round.first_run.hypervisor);
    let mut goals = goals(&speedup, &ours, &runs);
    goals.extend(writer_figures.goals());
    let table = table(subject, hypervisor, &rows, &runs, &goals)?;
    eprintln!("\n{table}");
    std::fs::create_dir_all(out)?;
    save(&out.join("image.table.md"), &table)?;
    save(&out.join("image.svg"), &plot::draw(&ours, &steps, &speedup)?)?;
    eprintln!("table and plot are in {}", out.display());
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52 bytes")]
fn table(
    subject: &Subject,
    hypervisor: &str,
    rows: &[&Row],
    runs: &[Figure],
    goals: &[Goal],
) -> Result<String, std::fmt::Error> {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut table = format!(
        "Measured by `cargo xtask bench image`: an image of {} layers, {:.0} MB packed with gzip and {:.0} MB \
         unpacked, from docker's registry on the same machine. Each begins with nothing, ends with its result synced, \
         and writes to the same filesystem; what the registry reads is in the page cache for both. Medians, in \
         brackets p10 and p90.\n\n\
         | what | wall ms | processor ms | peak MiB | written MiB |\n|---|---:|---:|---:|---:|\n",
        subject.layers,
        megabytes(subject.packed_bytes),
        megabytes(subject.unpacked_bytes),
    );
    for row in rows {
        writeln!(
            table,
            "| {} | {:.0} ({:.0}, {:.0}) | {:.0} | {:.1} | {:.1} |",
            row.name,
            row.wall.median,
            row.wall.p10,
            row.wall.p90,
            row.processor.median,
            row.peak.median,
            row.written.median
        )?;
    }
    writeln!(
        table,
        "\nA sandbox of that image that says one line, with an empty store and then with what is there, on \
         {hypervisor}:\n\n\
         | what | median ms | p10 | p90 | n |\n|---|---:|---:|---:|---:|"
    )?;
    for f in runs {
        writeln!(
            table,
            "| {} | {:.2} | {:.2} | {:.2} | {} |",
            f.figure, f.median, f.p10, f.p90, f.n
        )?;
    }
    writeln!(table)?;
    for goal in goals {
        writeln!(table, "- {}", goal.line())?;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(milliseconds: u64, peak_bytes: u64) -> Cost {
        Cost {
            wall: Duration::from_millis(milliseconds),
            peak_bytes,
            ..Cost::default()
        }
    }

    #[test]
    fn a_goal_says_whether_it_was_reached() {
        let reached = |speedup, peak_bytes, warm| {
            let ours = Row::new("ours", &[cost(1, peak_bytes)]);
            let run = |name: &str, value| Figure::of(name, vec![value]);
            let runs = [run("second run", 9.0), run("image that is there, again", warm)];
            let goals = goals(&run("speedup", speedup), &ours, &runs);
            goals.iter().map(|goal| goal.reached).collect::<Vec<_>>()
        };
        assert_eq!(reached(2.0, 64 << 20, 4.9), [true; 3]);
        assert_eq!(reached(1.99, 65 << 20, 5.0), [false; 3]);
        let goal = Goal {
            what: "x".to_owned(),
            reached: false,
        };
        assert_eq!(goal.line(), "NOT reached: x");
    }

    #[test]
    fn the_writer_is_held_to_mkfs() {
        let round = |milliseconds, bytes| Round {
            pull: Cost::default(),
            pipeline: [0, 0, 100, 0].map(|wall| cost(wall, 0)),
            writer: Writer {
                cost: cost(milliseconds, 0),
                bytes,
                mkfs_bytes: 1000,
            },
            first_run: Run::default(),
            second_run: Run::default(),
            again_us: Vec::new(),
        };
        let reached = |round| WriterFigures::new(&[round]).goals().map(|goal| goal.reached);
        assert_eq!(reached(round(150, 1100)), [true; 2]);
        assert_eq!(reached(round(151, 1101)), [false; 2]);
    }

    #[test]
    fn steps_add_up_and_the_largest_is_the_peak() {
        let sum = Cost::sum(&[cost(30, 7), cost(12, 9)]);
        assert_eq!((sum.wall, sum.peak_bytes), (Duration::from_millis(42), 9));
    }
}
