//! `cargo xtask test`: the whole suite, and what it needs.
//!
//! ```text
//!  setup ─► tidy ─► fmt ─► clippy ─► package ─► cargo test ─► again ─► nested beds ─► `N passed, M failed, …`
//!           └── a gate that fails is a failure, and the next one runs all the same ──┘
//! ```
//!
//! Guests boot the tailored kernel; what runs again does so with the distribution's, and says so.
//!
//! Where this machine's KVM runs stock guests, the tests that need it run under cargo like all others;
//! elsewhere they run in [`nested`] beds.

mod nested;
mod programs;
mod tally;

use std::error::Error;
use std::fs::File;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};

use crate::bed::{Bed, BedError, End};
use crate::conformance::{self, Conformance};
use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::setup::{self, Purpose, Ready, SetupError};
use crate::tidy;
use crate::workspace::Workspace;

use nested::{Asked, Extent, Plan};
use tally::{Line, Tally};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains this, and none of the other checks
    filter: Option<String>,
    /// Run the tests that need a sandbox on this backend only
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// How much runs in the nested bed, where this machine has no KVM for stock guests
    #[arg(long, value_enum, default_value = "normal")]
    bed: Extent,
}

impl Options {
    /// Whether everything is run that the documents speak of.
    fn is_whole(&self) -> bool {
        self.filter.is_none() && self.backend.is_none() && self.bed != Extent::None
    }
}

/// What the tests' sandboxes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The agent as an ordinary process
    Fake,
    /// A whole machine in QEMU, in software
    #[value(name = "qemu_tcg")]
    QemuTcg,
    /// A whole machine in QEMU, on KVM
    #[value(name = "qemu_kvm")]
    QemuKvm,
    /// A whole machine in our own monitor, on KVM
    Kvm,
}

impl Backend {
    /// What the tests read in `KATA_TEST_BACKENDS`.
    const fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::QemuTcg => "qemu_tcg",
            Self::QemuKvm => "qemu_kvm",
            Self::Kvm => "kvm",
        }
    }
}

/// What the sandboxes' guests boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GuestKernel {
    /// The one that is built for guests.
    Tailored,
    /// The distribution's, with modules.
    Distribution,
}

impl GuestKernel {
    /// In front of what its tests say; nothing for the usual one.
    const fn label(self) -> &'static str {
        match self {
            Self::Tailored => "",
            Self::Distribution => "distribution kernel",
        }
    }
}

/// Tests that run once more with the distribution's kernel: what loads its modules, and what differs with it.
const WITH_DISTRIBUTION_KERNEL: &[&str] = &[
    "a_dropped_sandbox_leaves_nothing",
    "many_execs_at_once",
    "memory_and_processors_are_what_was_asked_for",
    "modules_of_the_kernel_are_loaded_or_refused_by_name",
    "the_exit_code_is_the_code_and_streams_are_apart",
];

/// Why the suite could not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestError {
    /// Something that it needs is missing.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// cargo could not be run.
    #[error("cannot run the tests")]
    Cargo(#[from] ProcessError),
    /// The nested bed could not be made.
    #[error("cannot make the nested bed")]
    Bed(#[from] BedError),
    /// The repository could not be read.
    #[error("cannot read what has to conform")]
    Conformance(#[from] tidy::TidyError),
}

/// Runs the suite; the last line on standard output is its sum.
///
/// # Errors
/// When it could not run to its end; failing tests are an exit code.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode, TestError> {
    let ready = setup::provide(workspace, Purpose::Test)?;
    if options.bed == Extent::Only {
        return Ok(judge(&in_beds(workspace, options, &ready)?, &[]));
    }
    let mut broken = if options.filter.is_none() {
        gates(workspace)
    } else {
        Vec::new()
    };
    let nested = options.bed != Extent::None && !has_kvm();
    let mut tally = Tally::default();
    let status = process::stream(&mut cargo_test(workspace, options, &ready, nested), |line| {
        show(&mut tally, line);
    })?;
    tally.end(status.success());
    if options.filter.is_none() {
        tally.absorb(with_distribution_kernel(workspace, options, &ready)?);
    }
    if nested {
        tally.absorb(in_beds(workspace, options, &ready)?);
    } else if options.filter.is_none() {
        tally.absorb(on_more_processors(workspace, options, &ready)?);
    }
    if options.is_whole() {
        broken.extend(conforms(workspace, &tally)?);
    }
    Ok(judge(&tally, &broken))
}

/// Says whether every row of the documents was seen to hold on every backend; the name of the check if not.
fn conforms(workspace: &Workspace, tally: &Tally) -> Result<Option<&'static str>, TestError> {
    let conformance = Conformance::read(&tidy::Tree::read(&workspace.root)?);
    let (missing, sum) = conformance::judge(&conformance, tally.bodies());
    missing.iter().for_each(|line| println!("{line}"));
    println!("{sum}");
    // Elsewhere than in CI a machine may lack a backend, which the skipped tests say.
    Ok((in_ci() && !missing.is_empty()).then_some("conformance"))
}

/// Prints the sum.
fn judge(tally: &Tally, broken: &[&str]) -> ExitCode {
    let (text, good) = report(tally, broken, in_ci());
    print!("\n{text}");
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn show(tally: &mut Tally, line: &str) {
    if let Line::Shown = tally.read(line) {
        println!("{line}");
    }
}

/// Whether the tests that need KVM can run here: the processor virtualizes, and `/dev/kvm` can be opened.
fn has_kvm() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = File::options().read(true).write(true).open("/dev/kvm");
    virtualizes(&cpuinfo) && device.is_ok()
}

/// Whether proc(5) `cpuinfo` lists Intel's or AMD's virtualization.
fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "flags")
        .any(|(_, flags)| flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

/// Runs the tests that need KVM in nested beds. One that breaks down is a failure, not the end of the suite.
fn in_beds(workspace: &Workspace, options: &Options, ready: &Ready) -> Result<Tally, TestError> {
    let programs = programs::build(workspace)?;
    let asked = Asked {
        extent: options.bed,
        filter: options.filter.as_deref(),
        backend: options.backend,
    };
    let plan = Plan::new(&programs, asked);
    let mut tally = Tally::default();
    if plan.is_empty() {
        return Ok(tally);
    }
    let bed = Bed::make(workspace, ready)?;
    let step = Step::start("tests in the nested bed");
    for mut outcome in plan.run(&bed, &programs, &mut |line| println!("{line}")) {
        match &outcome.end {
            Ok(end) => outcome.tally.end(*end == End::Exit(0)),
            Err(error) => {
                println!("{}", crate::chain(error));
                outcome.tally.broken();
            }
        }
        tally.absorb(outcome.tally);
    }
    step.done("");
    plan.omissions().iter().for_each(|line| println!("{line}"));
    Ok(tally)
}

/// The one test body again on the machine's own KVM, with two processors.
fn on_more_processors(workspace: &Workspace, options: &Options, ready: &Ready) -> Result<Tally, TestError> {
    let mut tally = Tally::default();
    let wanted = |backend: &&Backend| options.backend.is_none_or(|only| only == **backend);
    let backends: Vec<_> = nested::BACKENDS
        .iter()
        .filter(wanted)
        .map(|backend| backend.name())
        .collect();
    if backends.is_empty() || !has_kvm() {
        return Ok(tally);
    }
    let mut command = workspace.cargo(&[
        "test",
        "--package=kata-sandbox",
        "--tests",
        "--no-fail-fast",
        "--",
    ]);
    command
        .args(["--show-output", "kvm::"])
        .env("KATA_TEST_VCPUS", "2")
        .env("KATA_TEST_BACKENDS", backends.join(","));
    provide(&mut command, ready, GuestKernel::Tailored);
    let status = process::stream(&mut command, |line| show(&mut tally, line))?;
    tally.end(status.success());
    Ok(tally)
}

/// A part of the one test body again, with the distribution's kernel, on what runs under cargo.
fn with_distribution_kernel(
    workspace: &Workspace,
    options: &Options,
    ready: &Ready,
) -> Result<Tally, TestError> {
    let mut tally = Tally::default();
    let here: &[Backend] = match has_kvm() {
        true => &[Backend::QemuTcg, Backend::QemuKvm, Backend::Kvm],
        false => &[Backend::QemuTcg],
    };
    let wanted = |backend: &&Backend| options.backend.is_none_or(|only| only == **backend);
    let names: Vec<String> = here
        .iter()
        .filter(wanted)
        .flat_map(|backend| {
            WITH_DISTRIBUTION_KERNEL
                .iter()
                .map(move |test| (backend.name(), test))
        })
        .map(|(backend, test)| format!("{backend}::{test}"))
        .collect();
    if names.is_empty() {
        return Ok(tally);
    }
    let kernel = GuestKernel::Distribution;
    let words = [
        "test",
        "--package=kata-sandbox",
        "--tests",
        "--no-fail-fast",
        "--",
        "--show-output",
        "--exact",
    ];
    let mut command = workspace.cargo(&words);
    command.args(names);
    provide(&mut command, ready, kernel);
    let status = process::stream(&mut command, |line| {
        if let Line::Shown = tally.read(line) {
            println!("[{}] {line}", kernel.label());
        }
    })?;
    tally.end(status.success());
    Ok(tally)
}

/// What was skipped and what failed, then the sum; and whether all is well.
fn report(tally: &Tally, broken: &[&str], ci: bool) -> (String, bool) {
    let required = if ci { tally.required_skips() } else { 0 };
    let failed = tally.failed() + broken.len();
    let mut lines: Vec<String> = tally.skipped().iter().cloned().collect();
    lines.extend(broken.iter().map(|gate| format!("FAILED check: {gate}")));
    if required > 0 {
        lines.push(format!(
            "FAILED: {required} required test(s) were skipped, and CI is set"
        ));
    }
    let skipped = tally.skipped().len() + tally.ignored();
    lines.push(format!(
        "{} passed, {failed} failed, {skipped} skipped\n",
        tally.passed()
    ));
    (lines.join("\n"), failed + required == 0)
}

/// Whether this is a run that must not skip what it is there for.
fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

fn cargo_test(workspace: &Workspace, options: &Options, ready: &Ready, nested: bool) -> Command {
    let mut command = workspace.cargo(&["test", "--workspace", "--no-fail-fast"]);
    // The output of passing tests is read for what they skipped.
    command
        .args(options.filter.as_deref())
        .args(["--", "--show-output"]);
    provide(&mut command, ready, GuestKernel::Tailored);
    if nested {
        let elsewhere: Vec<_> = nested::BACKENDS.iter().map(|backend| backend.name()).collect();
        command.env("KATA_TEST_ELSEWHERE", elsewhere.join(","));
    }
    if let Some(backend) = options.backend {
        command.env("KATA_TEST_BACKENDS", backend.name());
    }
    command
}

/// Names what was set up.
fn provide(command: &mut Command, ready: &Ready, kernel: GuestKernel) {
    let vmlinux = match (kernel, &ready.tailored) {
        (GuestKernel::Tailored, Some(tailored)) => tailored,
        _ => &ready.vmlinux,
    };
    command
        .env("KATA_VMM", &ready.monitor)
        .env("KATA_TEST_ROOTFS", &ready.rootfs)
        .env("KATA_TEST_BZIMAGE", &ready.kernel.image)
        .env("KATA_KERNEL", vmlinux)
        .env_remove("KATA_INITRAMFS")
        .env("KATA_KERNEL_MODULES", &ready.kernel.modules)
        .env("CARGO_TERM_COLOR", "never");
    if let Some(images) = &ready.images {
        command.env("KATA_TEST_IMAGES", images);
    }
}

/// One of the checks beside the tests.
type Check<'a> = dyn Fn(&Step) -> Result<(), Box<dyn Error>> + 'a;

/// Runs the checks beside the tests; gives back the names of those that failed.
fn gates(workspace: &Workspace) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut gate = |name, check: &Check<'_>| {
        let step = Step::start(name);
        match check(&step) {
            Ok(()) => step.done(""),
            Err(error) => {
                drop(step);
                eprintln!("{}", crate::chain(error.as_ref()));
                broken.push(name);
            }
        }
    };
    gate("tidy", &|_| Ok(tidy::check(workspace)?));
    gate("cargo fmt", &|step| {
        cargo(step, workspace, &["fmt", "--all", "--check"])
    });
    gate("cargo clippy", &|step| {
        let words = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "--deny=warnings",
        ];
        cargo(step, workspace, &words)
    });
    gate("cargo package", &|step| package(step, workspace));
    broken
}

fn cargo(step: &Step, workspace: &Workspace, words: &[&str]) -> Result<(), Box<dyn Error>> {
    Ok(process::run(step, &mut workspace.cargo(words))?)
}

/// Whether every library can be published as it is: not the programs.
fn package(step: &Step, workspace: &Workspace) -> Result<(), Box<dyn Error>> {
    let mut command = workspace.cargo(&[
        "package",
        "--workspace",
        "--no-verify",
        "--allow-dirty",
        "--offline",
    ]);
    for end in ["examples", "benches", "device-guest", "xtask", "bed-init"] {
        command.arg(format!("--exclude={end}"));
    }
    let mut warnings = Vec::new();
    let mut lines = Vec::new();
    let status = process::stream(&mut command, |line| {
        step.says(line);
        lines.push(line.to_owned());
        if line.starts_with("warning: manifest has no") {
            warnings.push(line.to_owned());
        }
    })?;
    if !status.success() {
        return Err(format!("`cargo package` failed:\n{}", lines.join("\n")).into());
    }
    if !warnings.is_empty() {
        return Err(warnings.join("\n").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        tally.end(true);
        tally
    }

    #[test]
    fn virtualization_is_a_flag_of_the_processor() {
        assert!(virtualizes("processor : 0\nflags\t\t: fpu svm\n"));
        assert!(!virtualizes(
            "flags : fpu svm_lock\nbugs : vmx\nvmx flags : vnmi\n"
        ));
    }

    #[test]
    fn a_failed_check_fails_the_suite() {
        let clean = tally(&["test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"]);
        assert_eq!(
            report(&clean, &[], true),
            ("2 passed, 0 failed, 0 skipped\n".to_owned(), true)
        );
        assert_eq!(
            report(&clean, &["tidy"], false),
            (
                "FAILED check: tidy\n2 passed, 1 failed, 0 skipped\n".to_owned(),
                false
            )
        );
    }

    #[test]
    fn skipped_tests_are_named_and_fail_the_suite_in_ci() {
        let skipped = tally(&[
            "SKIPPED runs: no kernel",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(
            report(&skipped, &[], false),
            (
                "SKIPPED runs: no kernel\n1 passed, 0 failed, 2 skipped\n".to_owned(),
                true
            )
        );
        assert!(!report(&skipped, &[], true).1);
    }
}
