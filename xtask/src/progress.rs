//! What the person at the terminal sees while something takes long.
//!
//! ```text
//!  terminal:   ⠹ root filesystem  12.3s  I: installing packages...     (a line that moves)
//!              ⠹ images  3.1s  python █████░░░░░ 12.00 MiB of 31.70 MiB, 48.20 MiB/s
//!              ✔ root filesystem  41.0s  212 MiB
//!  otherwise:  root filesystem ...
//!              root filesystem: done in 41.0s, 212 MiB
//! ```
//!
//! Everything goes to standard error. It must not know what the steps do.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::units::mib;

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(100);

/// Something that takes time, from [`start`](Self::start) to [`done`](Self::done).
/// Dropped without it, it is shown as failed.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    finished: bool,
}

impl Step {
    /// Shows that it began.
    pub(crate) fn start(name: impl Into<String>) -> Self {
        Self::start_on(name.into(), std::io::stderr().is_terminal())
    }

    fn start_on(name: String, terminal: bool) -> Self {
        let bar = terminal.then(|| spinner(&name));
        if bar.is_none() {
            eprintln!("{name} ...");
        }
        Self {
            name,
            started: Instant::now(),
            bar,
            finished: false,
        }
    }

    /// What a program that works on it said last; shown on a terminal only.
    pub(crate) fn says(&self, line: &str) {
        if let Some(bar) = &self.bar {
            if bar.length().is_some() {
                set_style(bar, SPINNER);
                bar.unset_length();
            }
            bar.set_message(printable(line));
        }
    }

    /// So many bytes of something; where it is known of how many, there is a bar. Shown on a terminal only.
    pub(crate) fn counts(&self, what: &str, done_bytes: u64, total_bytes: Option<u64>) {
        let Some(total_bytes) = total_bytes else {
            return self.says(&format!("{what} {}", mib(done_bytes)));
        };
        if let Some(bar) = &self.bar {
            if bar.length() != Some(total_bytes) {
                set_style(bar, BYTES);
                bar.set_length(total_bytes);
                // The rate is that of these bytes alone.
                bar.reset_eta();
            }
            bar.set_message(printable(what));
            bar.set_position(done_bytes);
        }
    }

    /// Shows that it is done, and a word about the result.
    pub(crate) fn done(mut self, detail: impl AsRef<str>) {
        self.finished = true;
        self.show(true, detail.as_ref());
    }

    fn show(&self, good: bool, detail: &str) {
        let line = closing_line(
            &self.name,
            good,
            self.started.elapsed(),
            detail,
            self.bar.is_some(),
        );
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.show(false, "");
        }
    }
}

/// Says something that took no time: a fact that was found out.
pub(crate) fn note(text: impl AsRef<str>) {
    let mark = if std::io::stderr().is_terminal() {
        "✔ "
    } else {
        ""
    };
    eprintln!("{mark}{}", text.as_ref());
}

const SPINNER: &str = "{spinner} {prefix}  {elapsed}  {wide_msg:.dim}";
const BYTES: &str =
    "{spinner} {prefix}  {elapsed}  {msg:.dim} {bar:24} {bytes} of {total_bytes}, {bytes_per_sec}";

fn set_style(bar: &ProgressBar, template: &str) {
    // The templates are constants and well-formed; the default style is a spinner too.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

fn spinner(name: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    set_style(&bar, SPINNER);
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

fn closing_line(name: &str, good: bool, took: Duration, detail: &str, terminal: bool) -> String {
    let seconds = took.as_secs_f64();
    match (terminal, good, detail) {
        (true, true, _) => format!("✔ {name}  {seconds:.1}s  {detail}").trim_end().to_owned(),
        (true, false, _) => format!("✘ {name}  {seconds:.1}s"),
        (false, true, "") => format!("{name}: done in {seconds:.1}s"),
        (false, true, _) => format!("{name}: done in {seconds:.1}s, {detail}"),
        (false, false, _) => format!("{name}: FAILED after {seconds:.1}s"),
    }
}

/// The line without control characters: a program's colours and carriage returns would break the spinner's.
fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            // ECMA-48 §5.4: a control sequence ends with a byte of 0x40 to 0x7e, after the introducer `[`.
            characters
                .by_ref()
                .find(|end| ('\x40'..='\x7e').contains(end) && *end != '[');
        } else if !character.is_control() {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_says_how_it_went_and_how_long_it_took() {
        let took = Duration::from_millis(1250);
        assert_eq!(
            closing_line("guest", true, took, "4 MiB", false),
            "guest: done in 1.2s, 4 MiB"
        );
        assert_eq!(
            closing_line("guest", true, took, "", false),
            "guest: done in 1.2s"
        );
        assert_eq!(
            closing_line("guest", false, took, "", false),
            "guest: FAILED after 1.2s"
        );
        assert_eq!(closing_line("guest", true, took, "", true), "✔ guest  1.2s");
        assert_eq!(closing_line("guest", false, took, "", true), "✘ guest  1.2s");
    }

    #[test]
    fn colours_and_carriage_returns_are_removed() {
        assert_eq!(printable("\x1b[1m\x1b[32mCompiling\x1b[0m x\r"), "Compiling x");
    }
}
