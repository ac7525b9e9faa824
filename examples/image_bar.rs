//! How far an image has come, for the person in front of the program.
//!
//! ```text
//!  terminal:   debian:12  downloading, 1 layer ██████░░░░░░░░░ 17.25 MiB of 46.31 MiB, 38.20 MiB/s
//!              debian:12: downloading done, 46.31 MiB, 3 layers, 37.52 MiB/s
//!  otherwise:  debian:12: downloading 17.25 MiB of 46.31 MiB, 1 layer        (a line every five seconds)
//!              debian:12: downloading done, 46.31 MiB, 3 layers, 37.52 MiB/s
//! ```
//!
//! Everything goes to standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kata_sandbox::image::Progress;

/// How often there is a line where there is no terminal.
const LINES_APART: Duration = Duration::from_secs(5);

const WITH_TOTAL: &str = "{prefix}  {msg} {bar:24.cyan/dim} {bytes} of {total_bytes}, {bytes_per_sec}";
const WITHOUT_TOTAL: &str = "{prefix}  {msg} {spinner} {bytes}, {bytes_per_sec}";

/// A bar for one image, which shows one stage after the other.
///
/// ```no_run
/// use examples::ImageBar;
/// use kata_sandbox::image::{ImageSource, Pull, Store};
///
/// let store = Store::open(Store::default_directory()?)?;
/// let mut bar = ImageBar::new("debian:12");
/// store.image(&ImageSource::detect("debian:12")?, &Pull::default(), &mut |progress| bar.report(progress))?;
/// bar.finish();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ImageBar {
    name: String,
    is_terminal: bool,
    stage: Option<Stage>,
}

/// What is being shown.
#[derive(Debug)]
struct Stage {
    last: Progress,
    began: Instant,
    /// When the last line was written.
    told: Instant,
    /// Where there is a terminal.
    bar: Option<ProgressBar>,
}

impl ImageBar {
    /// Shows nothing yet: an image that is there already makes no progress.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            is_terminal: std::io::stderr().is_terminal(),
            stage: None,
        }
    }

    /// Shows it. A stage other than the last begins a new bar.
    pub fn report(&mut self, progress: Progress) {
        if self
            .stage
            .as_ref()
            .is_some_and(|stage| stage.last.stage != progress.stage)
        {
            self.close();
        }
        let stage = self.stage.get_or_insert_with(|| Stage {
            last: progress,
            began: Instant::now(),
            told: Instant::now(),
            bar: self.is_terminal.then(|| bar(&self.name)),
        });
        stage.last = progress;
        match &stage.bar {
            Some(bar) => show(bar, progress),
            None if stage.told.elapsed() >= LINES_APART => {
                stage.told = Instant::now();
                eprintln!("{}: {}", self.name, line(progress));
            }
            None => {}
        }
    }

    /// The last stage is done.
    pub fn finish(mut self) {
        self.close();
    }

    fn close(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        let rate = rate(stage.last.done_bytes, stage.began.elapsed());
        eprintln!("{}: {}", self.name, closing_line(stage.last, rate));
    }
}

/// What did not come to its end leaves no bar behind; the error says why.
impl Drop for ImageBar {
    fn drop(&mut self) {
        if let Some(bar) = self.stage.take().and_then(|stage| stage.bar) {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_prefix(name.to_owned());
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    if bar.length() != progress.total_bytes || bar.message().is_empty() {
        let template = if progress.total_bytes.is_some() {
            WITH_TOTAL
        } else {
            WITHOUT_TOTAL
        };
        // The templates are constants and well-formed; the default style has a bar too.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        progress.total_bytes.inspect(|total| bar.set_length(*total));
    }
    bar.set_message(format!("{}, {}", progress.stage, progress.counted()));
    bar.set_position(progress.done_bytes);
}

/// A line on the way.
fn line(progress: Progress) -> String {
    let mut text = format!("{} {}", progress.stage, HumanBytes(progress.done_bytes));
    if let Some(total) = progress.total_bytes {
        text += &format!(" of {}", HumanBytes(total));
    }
    format!("{text}, {}", progress.counted())
}

/// A stage's last line.
fn closing_line(progress: Progress, rate: u64) -> String {
    let (stage, bytes) = (progress.stage, HumanBytes(progress.done_bytes));
    format!(
        "{stage} done, {bytes}, {}, {}/s",
        progress.counted(),
        HumanBytes(rate)
    )
}

/// Bytes a second.
fn rate(bytes: u64, took: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}
