//! Counts what `cargo test` says, line by line.
//!
//! A test that cannot run here prints `SKIPPED name: reason` at the start of a line and passes; libtest
//! counts it as passed, this counts it as skipped.
//! A reason that begins with `optional: ` names something that not every machine can have.
//! A test that another part of the suite runs prints `ELSEWHERE name`; here it counts as nothing.

use std::collections::BTreeSet;

use crate::conformance::Passed;

/// How a test says that it did not run.
const SKIPPED: &str = "SKIPPED ";

/// How a test says that another part of the suite runs it.
const ELSEWHERE: &str = "ELSEWHERE ";

/// How its reason begins when no machine is required to run it.
const OPTIONAL: &str = ": optional: ";

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// It is for people.
    Shown,
    /// It is the output of a test that passed.
    Hidden,
}

/// The sum over all test binaries.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Test binaries that ended without a result.
    crashed: usize,
    skipped: BTreeSet<String>,
    elsewhere: BTreeSet<String>,
    /// Those of the one test body that passed.
    bodies: Passed,
    /// The test whose result is on a later line than its name.
    unfinished: Option<String>,
    /// Inside of what passing tests printed.
    hidden: bool,
}

impl Tally {
    /// Takes one line of output.
    pub(super) fn read(&mut self, line: &str) -> Line {
        if let Some(result) = Counts::parse(line) {
            self.passed += result.passed;
            self.failed += result.failed;
            self.ignored += result.ignored;
            self.hidden = false;
            return Line::Shown;
        }
        self.skipped.extend(said(line, SKIPPED));
        self.elsewhere.extend(said(line, ELSEWHERE));
        self.read_name(line);
        match line {
            "successes:" => self.hidden = true,
            "failures:" => self.hidden = false,
            _ if is_crash(line) => self.crashed += 1,
            _ => {}
        }
        if self.hidden { Line::Hidden } else { Line::Shown }
    }

    /// Takes the name of a test that passed. What the test wrote itself may stand between its name and its result.
    fn read_name(&mut self, line: &str) {
        if let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            self.unfinished = (result != "ok").then(|| name.to_owned());
            if result == "ok" {
                self.bodies.add(name);
            }
        } else if line == "ok"
            && let Some(name) = self.unfinished.take()
        {
            self.bodies.add(&name);
        }
    }

    /// The tests of the one body that ran and passed, after the end.
    pub(super) fn bodies(&self) -> &Passed {
        &self.bodies
    }

    /// Takes the end of the output: a failure that no line told, such as a compiler error, counts as one.
    pub(super) fn end(&mut self, success: bool) {
        if !success && self.failed() == 0 {
            self.crashed = 1;
        }
        for line in self.elsewhere.iter().chain(&self.skipped) {
            let name = line.trim_start_matches(ELSEWHERE).trim_start_matches(SKIPPED);
            self.bodies.remove(name.split(": ").next().unwrap_or(name));
        }
    }

    /// Takes a bed that broke down, whatever its tests said before.
    pub(super) fn broken(&mut self) {
        self.crashed += 1;
    }

    /// Adds what another part of the suite counted; both have ended.
    pub(super) fn absorb(&mut self, other: Self) {
        // A test that was skipped in both parts is one line, and was counted as passed in both.
        let twice = self.skipped.intersection(&other.skipped).count();
        self.passed += other.passed.saturating_sub(twice);
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.crashed += other.crashed;
        self.skipped.extend(other.skipped);
        self.elsewhere.extend(other.elsewhere);
        self.bodies.absorb(other.bodies);
    }

    /// Tests that ran and passed.
    pub(super) fn passed(&self) -> usize {
        self.passed
            .saturating_sub(self.skipped.len() + self.elsewhere.len())
    }

    /// Tests that failed, and test binaries that crashed.
    pub(super) fn failed(&self) -> usize {
        self.failed + self.crashed
    }

    /// Tests that libtest was told to ignore.
    pub(super) fn ignored(&self) -> usize {
        self.ignored
    }

    /// The lines of the tests that skipped themselves.
    pub(super) fn skipped(&self) -> &BTreeSet<String> {
        &self.skipped
    }

    /// How many of them every machine is required to run.
    pub(super) fn required_skips(&self) -> usize {
        self.skipped
            .iter()
            .filter(|line| !line.contains(OPTIONAL))
            .count()
    }
}

/// What a test says of itself after this word. What it writes past libtest's capture stands behind its name.
fn said(line: &str, word: &str) -> Option<String> {
    let at = line.find(word)?;
    (at == 0 || line[..at].ends_with(" ... ")).then(|| line[at..].to_owned())
}

/// Whether cargo says that a test binary ended in another way than libtest ends one with failures (code 101).
fn is_crash(line: &str) -> bool {
    line.contains("process didn't exit successfully: ") && !line.ends_with("(exit status: 101)")
}

/// The numbers of a `test result:` line.
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(name))
                .and_then(|number| number.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str, success: bool) -> (Tally, Vec<&str>) {
        let mut tally = Tally::default();
        let shown = output
            .lines()
            .filter(|line| tally.read(line) == Line::Shown)
            .collect();
        tally.end(success);
        (tally, shown)
    }

    #[test]
    fn all_binaries_are_summed() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                      test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out\n";
        let (tally, _) = tally(output, false);
        assert_eq!((tally.passed(), tally.failed(), tally.ignored()), (7, 2, 1));
    }

    #[test]
    fn a_skipped_test_did_not_pass() {
        let output = "running 3 tests\ntest a ... ok\ntest b ... SKIPPED b: optional: no /dev/kvm\nok\n\n\
                      successes:\n\n---- a stdout ----\nSKIPPED a: no kernel\n\n\nsuccesses:\n    a\n\n\
                      test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let (tally, shown) = tally(output, true);
        assert_eq!((tally.passed(), tally.skipped().len()), (1, 2));
        assert_eq!(tally.required_skips(), 1);
        assert!(!shown.iter().any(|line| line.contains("stdout")), "{shown:?}");
        assert!(shown.last().unwrap().starts_with("test result"));
    }

    #[test]
    fn the_output_of_failed_tests_is_shown() {
        let output = "successes:\nnoise\nsuccesses:\n    a\n\nfailures:\n\n---- b stdout ----\npanicked\n";
        let (_, shown) = tally(output, false);
        assert!(shown.contains(&"panicked") && !shown.contains(&"noise"));
    }

    #[test]
    fn a_crash_and_a_compiler_error_are_failures() {
        let crash = "  process didn't exit successfully: `t` (signal: 11, SIGSEGV: invalid memory reference)";
        assert_eq!(tally(crash, false).0.failed(), 1);
        let ordinary = "  process didn't exit successfully: `t` (exit status: 101)";
        assert_eq!(tally(ordinary, false).0.failed(), 1);
        assert_eq!(tally("error: could not compile", false).0.failed(), 1);
        assert_eq!(tally("", true).0.failed(), 0);
    }

    #[test]
    fn a_test_that_runs_elsewhere_counts_as_nothing_here() {
        let here = "test kvm::a ... ok\n\nsuccesses:\n\n---- kvm::a stdout ----\nELSEWHERE x::kvm::a\n\n\
                    successes:\n    kvm::a\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n";
        let (mut sum, _) = tally(here, true);
        assert_eq!((sum.passed(), sum.skipped().len()), (1, 0));
        let (there, _) = tally(
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n",
            false,
        );
        sum.absorb(there);
        assert_eq!((sum.passed(), sum.failed()), (2, 1));
    }

    #[test]
    fn bodies_that_passed_are_known_by_backend_and_name() {
        let output = "test fake::a ... ok\ntest kvm::a ... ok\ntest fake::b ... SKIPPED t::fake::b: none\nok\n\
                      test fake::c ... something it said\nok\ntest fake::d ... FAILED\ntest unit::e ... ok\n\
                      successes:\nELSEWHERE t::kvm::a\n\
                      test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured\n";
        let mut expected = Passed::default();
        expected.add("fake::a");
        expected.add("fake::c");
        assert_eq!(tally(output, false).0.bodies(), &expected);
    }

    #[test]
    fn what_both_parts_skip_is_one_skip() {
        let skips = "SKIPPED a: no kernel\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n";
        let (mut sum, _) = tally(skips, true);
        sum.absorb(tally(skips, true).0);
        assert_eq!((sum.passed(), sum.skipped().len()), (2, 1));
    }
}
